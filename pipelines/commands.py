"""The command `grpo-rm`: options to function calls. What a command needs is imported when it runs."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipelines.stage import run_stage

Command = Callable[[], None]

app = typer.Typer(
    help="Post-trained vision encoders: serve them, embed images, and index them for the search of similar ones.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="FOLDER|PARQUET...", help="Images below a folder, or shards such as data/prepared/train."),
]
MODEL_HELP = "models:/NAME@ALIAS, or the path of an ONNX file."


# Commands return what is to be done: outside of Typer, which has its own ideas of errors and interrupts.


@app.command(
    add_help_option=False,  # serving.settings has the options, and describes them
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    short_help="Serve the champion, or an ONNX file, over HTTP.",
)
def serve(context: typer.Context) -> Command:
    """Serve a model."""
    from serving.__main__ import main as serve

    return functools.partial(serve, context.args, program="grpo-rm serve")


@app.command(
    short_help="Embed images, offline, into a Parquet file.",
    epilog="Example: grpo-rm embed photos --model models:/grpo-rm-digits@champion --out embeddings.parquet",
)
def embed(
    sources: Sources,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
) -> Command:
    """Embed images into a Parquet file: id, label, embedding, SHA-256 of the image.

    What is interrupted goes on with the same command.

    Images that cannot be read are listed beside the file.
    """
    from pipelines.embed import embed_to_file

    return functools.partial(embed_to_file, sources, model=model, out=out)


@app.command(
    short_help="Index images, for /v1/similar of the server.",
    epilog="Example: grpo-rm index data/prepared/train --model models:/grpo-rm-digits@champion --out indexes",
)
def index(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="The directory of indexes, with one for each model.")],
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP} Not needed for a file of `grpo-rm embed`.")] = None,
    thumbnails: Annotated[bool, typer.Option(help="Keep a small JPEG of each image.")] = True,
) -> Command:
    """Index images, or a file of `grpo-rm embed`, so that the server finds similar ones.

    The index takes the place of the model's former one; a running server notices.

    What is interrupted goes on with the same command.
    """
    from pipelines.index import index_embeddings, index_images, is_embeddings

    if len(sources) == 1 and is_embeddings(sources[0]):
        return functools.partial(index_embeddings, sources[0], model=model, out=out)
    if model is None:
        raise typer.BadParameter("images need one to embed them", param_hint="--model")
    return functools.partial(index_images, sources, model=model, out=out, has_thumbnails=thumbnails)


def main() -> None:
    """Run the command line. Exit codes: 0, 1 for an error, 2 for wrong usage, 75, 130 and 143 as those of a stage."""
    run_stage(_run)


def _run() -> None:
    try:
        chosen = app(standalone_mode=False, prog_name="grpo-rm")
    except typer.TyperException as error:
        if reason := " ".join(error.format_message().split()):  # none where there was no command: help was shown
            path = getattr(getattr(error, "ctx", None), "command_path", "grpo-rm")
            print(f"error: {reason.rstrip('.')}; `{path} --help` lists what there is", file=sys.stderr)
        sys.exit(error.exit_code)
    if callable(chosen):  # else it was --help
        _interruptible(chosen)


def _interruptible(command: Command) -> None:
    try:
        command()
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or "interrupted") from None


if __name__ == "__main__":
    main()
