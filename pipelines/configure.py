"""Set the parameters of a file in params.yaml, which keeps its comments: `python -m pipelines.configure FILE`.

The file, such as configs/camvid.yaml, names what differs, in the same blocks as params.yaml. What it does not name
stays; `git checkout params.yaml` takes everything back.
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from grpo_rm.config import Config, load_config
from pipelines.stage import run_stage

PARAMS = Path("params.yaml")


def main() -> None:
    """Set the parameters of the file named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.configure", description=__doc__)
    parser.add_argument("file", type=Path, help="such as configs/camvid.yaml")
    file = parser.parse_args().file
    configure(file, PARAMS)
    print(f"{PARAMS} has the parameters of {file}; `git diff {PARAMS}` shows them")


def configure(path: Path, params: Path) -> None:
    """Set what a file names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML with the blocks of params.yaml, or the result would not be valid. Nothing is changed.
    """
    from dvc.utils.serialize import modify_yaml  # slow to import

    if not path.is_file():
        raise FileNotFoundError(f"{path} not found, expected a file with blocks as in {params}: see configs/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected blocks as in {params}")
    with tempfile.TemporaryDirectory() as directory:
        changed = Path(directory) / params.name
        shutil.copy2(params, changed)
        with modify_yaml(changed) as content:
            _merge(content, values, Config)
        try:
            load_config(changed)
        except ValueError as error:  # a person knows nothing of the copy
            raise ValueError(str(error).replace(str(changed), f"{params} with {path}", 1)) from None
        shutil.copy2(changed, params)


def _merge(content: Any, values: Mapping[str, Any], schema: type[BaseModel]) -> None:
    """Set values; a block of parameters is gone into, and what a person names (rewards, limits) is replaced whole."""
    blocks = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
    for name, value in values.items():
        block = blocks.get(name)
        if isinstance(block, type) and issubclass(block, BaseModel) and isinstance(value, dict) and name in content:
            _merge(content[name], value, block)
        else:
            content[name] = value


if __name__ == "__main__":
    run_stage(main)
