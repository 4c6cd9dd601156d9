"""Further seeds of both arms: stages of their own, which train nothing else again."""

import json
import signal
import subprocess

import pytest

from grpo_rm.progress import epoch_of

pytestmark = pytest.mark.pipeline

ARMS = ("grpo_rm", "cross_entropy")


def weights(workspace, name: str) -> bytes:
    return (workspace.root / f"models/finetune/{name}/model.safetensors").read_bytes()


def stale(workspace) -> set[str]:
    return set(json.loads(workspace.succeed("dvc", "status", "--json")))


def test_a_further_seed_is_trained_alone(workspace):
    workspace.set(finetune__seeds="[1]")
    assert stale(workspace) >= {"grpo_rm_seed@1", "cross_entropy_seed@1", "evaluate", "params"}
    output = workspace.succeed("dvc", "repro", "grpo_rm_seed@1", "cross_entropy_seed@1")
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran == {"grpo_rm_seed@1", "cross_entropy_seed@1"}
    assert "grpo_rm_seed@1  epoch 3/3  " in output
    for arm in ARMS:
        assert weights(workspace, f"seeds/{arm}/1") != weights(workspace, arm)
        curve = (workspace.root / f"reports/training/seeds/{arm}-1.csv").read_text().splitlines()
        assert curve[0] == (workspace.root / f"reports/training/{arm}.csv").read_text().splitlines()[0]
        described, main = (
            json.loads((workspace.root / f"models/finetune/{name}/training.json").read_text())
            for name in (f"seeds/{arm}/1", arm)
        )
        assert described == main | {"stage": f"{arm}_seed@1", "parameters": main["parameters"] | {"seed": 1}}
        assert "seeds" not in main["parameters"]["finetune"]
        assert (workspace.root / f"checkpoints/{arm}_seed/1/last").is_dir()
    assert workspace.succeed("git", "status", "--porcelain").split() == ["M", "dvc.lock", "M", "params.yaml"]

    params = (workspace.root / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(params.replace("\nseed: 0 ", "\nseed: 5 "))
    changed = stale(workspace)
    assert "finetune@cross_entropy" in changed
    assert not {"grpo_rm_seed@1", "cross_entropy_seed@1"} & changed
    (workspace.root / "params.yaml").write_text(params)
    workspace.set(finetune__seeds="[1, 2]")
    below = {"params", "evaluate", "register", "report"}
    assert stale(workspace) == {"grpo_rm_seed@2", "cross_entropy_seed@2"} | below
    workspace.set(finetune__seeds="[1]", objective__eps=0.5)
    assert stale(workspace) == {"finetune@grpo_rm", "grpo_rm_seed@1"} | below

    workspace.set(finetune__seeds="[]", objective__eps=0.01)
    workspace.succeed("dvc", "checkout")
    assert not list((workspace.root / "models/finetune/seeds").glob("*/1")), "of a seed that is no longer in the list"
    workspace.set(finetune__seeds="[1]")
    output = workspace.succeed("dvc", "repro", "--single-item", "grpo_rm_seed@1")
    assert "Running stage" not in output
    assert (workspace.root / "models/finetune/seeds/grpo_rm/1/model.safetensors").is_file()


@pytest.mark.slow
def test_an_interrupted_seed_goes_on_when_another_is_added(workspace):
    command = ("python", "-m", "pipelines.finetune", "cross_entropy", "1")
    workspace.set(finetune__seeds="[1]")
    workspace.succeed(*command)
    reference = weights(workspace, "seeds/cross_entropy/1")
    with subprocess.Popen(
        command, cwd=workspace.root, env=workspace.environment, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        for line in training.stdout:
            if epoch_of(line) == (1, 3):
                break
        training.send_signal(signal.SIGTERM)
    assert training.returncode == 143
    workspace.set(finetune__seeds="[2, 1]")
    assert "cross_entropy_seed@1  resumes at epoch " in workspace.succeed(*command)
    assert weights(workspace, "seeds/cross_entropy/1") == reference


def test_wrong_arguments(workspace):
    workspace.set(finetune__seeds="[1, 2]")
    command = ("python", "-m", "pipelines.finetune")
    usage = "expected `python -m pipelines.finetune grpo_rm|cross_entropy [SEED]`, SEED one of finetune.seeds"
    for arguments in ([], ["ppo"], ["ppo", "1"], ["1", "grpo_rm"], ["grpo_rm", "1", "2"]):
        assert workspace.fail(*command, *arguments) == f"error: got {' '.join(arguments)!r}, {usage}"
    for seed in ("3", "0", "01", "-1", "", "one"):
        message = workspace.fail(*command, "grpo_rm", seed)
        assert message.startswith(f"error: got seed {seed!r}, expected one of finetune.seeds in params.yaml, [1, 2]: ")
