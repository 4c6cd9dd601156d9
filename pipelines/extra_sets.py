"""Stage extra_sets: further test sets to shards, beside the data that models are trained on.

They come after `prepare`, whose classes they need and whose training and validation images they must not have.
"""

import json
import sys
from pathlib import Path

from grpo_rm.config import Config, load_config
from pipelines.preparation.extra_set import prepare_extra_set
from pipelines.preparation.replacement import replacing
from pipelines.sources.kinds import open_source
from pipelines.sources.source import Source
from pipelines.stage import run_stage

PREPARED, OUTPUT = Path("data/prepared"), Path("data/extra")
MIN_IMAGES = 2  # that two models can be compared on


def main() -> None:
    """Prepare all sets named in params.yaml."""
    config = load_config()
    with replacing(OUTPUT) as partial:  # so that sets of former names are gone
        for name in config.evaluate.extra_sets:
            prepare_set(config, name, partial / name)
        # the folder is never empty: DVC warns of an empty one at every command
        (partial / "sets.json").write_text(json.dumps(config.evaluate.extra_sets, indent=2) + "\n", encoding="utf-8")


def prepare_set(config: Config, name: str, output: Path) -> None:
    """Prepare one set, and print what it has.

    Raises:
        FileNotFoundError: Its source does not exist.
        ValueError: Its source cannot be opened, or it has other classes, or fewer than two images to measure.
    """
    origin = config.evaluate.extra_sets[name]
    source = open_set(name, origin, task=config.task)
    prepare_extra_set(source, output, prepared=PREPARED, origin=origin, shorter_side=config.data.resize_on_prepare)
    summary = json.loads((output / "extra.json").read_text(encoding="utf-8"))
    images, missing = sum(summary["counts"].values()), summary["missing_classes"]
    left_out = summary["copies"] + summary["near_duplicates"]
    known = f"{left_out} of {images + left_out} images are, or nearly are, training or validation images"
    if images < MIN_IMAGES:
        raise ValueError(
            f"evaluate.extra_sets.{name}: got {images} image(s) to measure, expected at least {MIN_IMAGES}: add others"
            + (f"; {known} and left out" if left_out else "")
        )
    if left_out:
        print(f"warning: extra_sets: {name}, {known}: they are left out of all metrics", file=sys.stderr)
    lacks = f", without {len(missing)} of the classes" if missing else ""
    print(f"extra_sets: {name}, {images} images{lacks}, {summary['undecodable']} that cannot be decoded")


def open_set(name: str, origin: str, *, task: str) -> Source:
    """Open the source of a set; errors begin with the parameter."""
    try:
        return open_source(origin, task=task)
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"evaluate.extra_sets.{name}: {str(error).removeprefix('data.source is ')}") from error


if __name__ == "__main__":
    run_stage(main, description=__doc__)
