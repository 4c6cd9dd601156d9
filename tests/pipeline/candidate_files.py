"""Files of a candidate, its rivals and what they were measured on, as the stages before `register` leave them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from image_sets import encode, write

from grpo_rm.config import Config, load_config
from grpo_rm.datasets import read_dataset, read_split
from grpo_rm.evaluation.corruptions import corrupt
from grpo_rm.transforms import decode
from pipelines import extra_sets
from pipelines.batches import PREPARED
from pipelines.candidate import read_candidate
from pipelines.evaluate import answer_corrupted
from pipelines.extra_results import read_extra_sets
from pipelines.measurements import measure_corrupted, measure_outputs
from pipelines.models import DIRECTORIES
from pipelines.predictions import predict_splits
from pipelines.verdict import Verdict, judge

NAME = "grpo-rm-digits"
ONNX, EVALUATION = Path("models/onnx/encoder.onnx"), Path("reports/evaluation.json")
PREDICTIONS = Path("reports/predictions")
CORRUPTED_IMAGES = 40


def set_parameters() -> None:
    text = Path("params.yaml").read_text()
    for old, new in (
        ("images: 2000 ", f"images: {CORRUPTED_IMAGES} "),
        ("extra_sets: {} ", "extra_sets: {sketch: 'folder:data/raw/sketch'} "),
        ("bootstrap_resamples: 10000", "bootstrap_resamples: 1000"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    Path("params.yaml").write_text(text)


def prepare_sketches() -> None:
    """Make an extra set of test images in another style: those of validation would be left out."""
    test = read_split(PREPARED, "test")
    for row in range(60):
        pixels = np.asarray(decode(test.files[row], channels=1))
        sketch = corrupt(pixels[..., None] if pixels.ndim == 2 else pixels, "contrast", 3, seed=0, image_id=str(row))
        write(Path("data/raw/sketch"), {f"{test.labels[row]}/{row}.png": encode(sketch.squeeze())})
    extra_sets.main()


def write_answers(name: str, directory: Path) -> None:
    """Write what stage evaluate writes of a model: predictions, and answers to corrupted images."""
    predict_splits({name: directory}, ["sketch"], workers=0)
    answer_corrupted({"pretrain": DIRECTORIES["pretrain"], name: directory}, load_config())


def state_metrics() -> None:
    """Write into evaluation.json what follows from the candidate's predictions."""
    config, candidate = load_config(), read_candidate(read_dataset(PREPARED))
    assert candidate.corrupted
    measured = measure_outputs(candidate.answers, read_extra_sets(["sketch"]), config, has_encoder=True)
    measured |= measure_corrupted(candidate.corrupted.answers, candidate.corrupted.reference)
    edit(lambda models: models["grpo_rm"].update(measured.metrics))


def edit(change: Callable[[dict], object]) -> None:
    """Change the metrics in evaluation.json."""
    content = json.loads(EVALUATION.read_text())
    change(content["models"])
    EVALUATION.write_text(json.dumps(content))


def with_gate(**limits: dict[str, float]) -> Config:
    """Return the configuration with another gate: thresholds, control, champion."""
    config = load_config()
    names = {"thresholds": "thresholds", "control": "min_gain_over_control", "champion": "min_gain_over_champion"}
    gate = config.register_.gate.model_copy(update={names[key]: value for key, value in limits.items()})
    return config.model_copy(update={"register_": config.register_.model_copy(update={"gate": gate})})


def verdict(config: Config | None = None, champion: str = "1") -> Verdict:
    """Judge what lies here against a version."""
    evaluation = json.loads(EVALUATION.read_text())
    return judge(evaluation, read_dataset(PREPARED), NAME, champion, config or load_config())


def failed(given: Verdict) -> dict[str, str]:
    return {clause.name: clause.reason for clause in given.clauses if not clause.has_passed}


def change_metadata(path: Path, **changes: object) -> None:
    """Change what an ONNX file says of itself."""
    model = onnx.load(path)
    said = {prop.key: prop.value for prop in model.metadata_props}
    for key, value in changes.items():
        name = f"grpo_rm.{key}"
        if isinstance(value, str):  # which is no JSON
            said[name] = value
        else:
            said[name] = json.dumps(json.loads(said[name]) | value if isinstance(value, dict) else value)
    onnx.helper.set_model_props(model, said)
    onnx.save(model, path)


def change_predictions(name: str, change: Callable[[dict], None]) -> None:
    path = PREDICTIONS / f"{name}.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns).replace_schema_metadata(table.schema.metadata), path)


def stored_file(version: str) -> Path:
    """Return the file in the artifact store, which the copies of the database share."""
    import mlflow

    there = mlflow.MlflowClient().get_model_version_download_uri(NAME, version).removeprefix("file://")
    return Path(there) / "model.onnx"
