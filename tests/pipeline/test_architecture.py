"""Who may import what. Checked in a process of its own, where nothing is imported yet."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORCHESTRATION = ("mlflow", "prefect", "dvc", "great_expectations")


def modules_of(package: str) -> list[str]:
    return sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    )


CHECK = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(",".join(sorted(set(sys.argv[2].split(",")) & set(sys.modules))))
"""


def imported_by(modules: list[str], suspects: tuple[str, ...]) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", CHECK, ",".join(modules), ",".join(suspects)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in done.stdout.strip().split(",") if name]


def test_the_library_imports_no_orchestration():
    assert imported_by(modules_of("grpo_rm"), (*ORCHESTRATION, "pipelines")) == []


def test_the_server_imports_neither_torch_nor_mlflow_nor_the_other_packages():
    assert imported_by(modules_of("serving"), ("torch", "timm", *ORCHESTRATION, "grpo_rm", "pipelines")) == []


def test_that_test_can_fail():
    assert imported_by(["dvc.version", "json"], ORCHESTRATION) == ["dvc"]


@pytest.mark.parametrize(
    "module",
    ["prepare", "extra_sets", "validate", "pretrain", "finetune", "evaluate", "export", "register", "report"],
)
def test_a_stage_starts_without_slow_imports(module):
    slow = ("torch", "timm", "mlflow", "great_expectations", "prefect", "sklearn", "matplotlib")
    assert imported_by([f"pipelines.{module}"], slow) == []


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("mlflow", "pipelines/tracking/"),
        ("prefect", "pipelines/flow/"),
        ("great_expectations", "pipelines/validation/expectations/"),
    ],
)
def test_one_module_imports(package, home):
    importing = [
        file.relative_to(ROOT).as_posix()
        for folder in ("grpo_rm", "pipelines")
        for file in (ROOT / folder).rglob("*.py")
        if f"import {package}" in (text := file.read_text()) or f"from {package}" in text
    ]
    assert importing
    assert all(file.startswith(home) for file in importing)
