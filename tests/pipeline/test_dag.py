"""dvc.yaml depends on all the code a stage runs, and on no block of params.yaml that it does not read."""

import ast
from pathlib import Path

import pytest
import yaml

from grpo_rm.config import Finetuning

ROOT = Path(__file__).parents[2]
# They do not decide what a stage writes; the schema is a dependency of the stage `params`.
NOT_RESULTS = {
    "grpo_rm/__init__.py",
    "grpo_rm/config.py",
    "grpo_rm/config_errors.py",
    "grpo_rm/evaluation/directions.py",  # of the schema; stage register, whose gate reads it too, declares it
    "grpo_rm/gate_names.py",  # of the schema
    "grpo_rm/progress.py",
    "pipelines/__init__.py",
    "pipelines/launch.py",
    "pipelines/stage.py",
    "pipelines/tracking/__init__.py",
    "pipelines/tracking/dataset.py",
    "pipelines/tracking/journal.py",
    "pipelines/tracking/recording.py",
    "pipelines/tracking/runs.py",
    "pipelines/tracking/store.py",
    "pipelines/tracking/system.py",
    "pipelines/tracking/upload.py",
}
FINETUNING = ("finetune", "grpo_rm_seed", "cross_entropy_seed")
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES, ARMS = DVC["stages"], DVC["vars"][0]["arms"]


def module_file(name: str) -> str | None:
    path = ROOT / name.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file.relative_to(ROOT).as_posix() for file in candidates if file.is_file()), None)


def imports_of(file: str) -> set[str]:
    """Return the files of this repository that a file imports, also within functions; not for type checking only."""
    found = set()
    pending: list[ast.AST] = [ast.parse((ROOT / file).read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return {name for module in found if (name := module_file(module))}


def code_of(file: str) -> set[str]:
    """Return a file and all it imports, directly or not."""
    known: set[str] = set()
    pending = {file}
    while pending:
        known |= pending
        pending = {imported for name in pending for imported in imports_of(name)} - known
    return known


def definition(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


def params_of(stage: str) -> list[str]:
    """Return the parameters of a stage; they are named alone, or below their file."""
    entries = definition(stage).get("params", [])
    return [name for entry in entries for name in (entry["params.yaml"] if isinstance(entry, dict) else [entry])]


def stage_file(stage: str) -> str:
    module = definition(stage)["cmd"].split()[2]
    file = module_file(module)
    assert file
    return file


def is_declared(file: str, declared: list[str]) -> bool:
    return any(file == entry or file.startswith(f"{entry}/") for entry in declared)


def missing_code(stage: str, declared: list[str]) -> list[str]:
    needed = code_of(stage_file(stage)) - NOT_RESULTS
    return sorted(file for file in needed if not is_declared(file, declared))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_code(stage):
    missing = missing_code(stage, definition(stage)["deps"])
    assert not missing, f"add to the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_other_code(stage):
    declared = [entry for entry in definition(stage)["deps"] if entry.endswith(".py")]
    superfluous = sorted(set(declared) - code_of(stage_file(stage)))
    assert not superfluous, f"remove from the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_dependency_would_be_found(stage):
    declared = definition(stage)["deps"]
    for file in code_of(stage_file(stage)) - NOT_RESULTS:
        without = [entry for entry in declared if not is_declared(file, [entry])]
        assert file in missing_code(stage, without)


def test_no_stage_imports_another():
    files = {stage_file(stage) for stage in STAGES}
    for file in files:
        assert not (code_of(file) - {file, "grpo_rm/config.py"}) & files


def test_every_block_of_params_has_a_stage():
    blocks = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    read = {name.split(".")[0] for stage in STAGES for name in params_of(stage)}
    read |= {arm["block"] for arm in ARMS.values()}
    assert blocks - read == {"loader", "tracking"}, "they change no output"


@pytest.mark.parametrize("stage", FINETUNING)
def test_fine_tuning_depends_on_all_of_its_block_but_the_list_of_seeds(stage):
    named = [name for name in params_of(stage) if name.startswith("finetune")]
    assert sorted(named) == sorted(f"finetune.{key}" for key in Finetuning.model_fields if key != "seeds")


@pytest.mark.parametrize("arm", ARMS)
def test_a_further_seed_depends_on_what_its_arm_depends_on_but_seed(arm):
    varied, seeds = ARMS[arm], definition(f"{arm}_seed")
    assert seeds["vars"] == [{"files": varied["files"]}]
    assert [entry.replace("${files}", "${item.files}") for entry in seeds["deps"]] == definition("finetune")["deps"]
    of_the_arm = {name.replace("${item.block}", varied["block"]) for name in params_of("finetune")}
    assert set(params_of(f"{arm}_seed")) == of_the_arm - {"seed"}
