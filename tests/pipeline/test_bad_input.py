"""What a user gets for a mistake: one message, exit code not 0, earlier results one `dvc checkout` away."""

import socket
import time
from contextlib import closing

import pytest
from PIL import Image

pytestmark = pytest.mark.pipeline

MODEL = "models/finetune/grpo_rm/model.safetensors"


def repro_fails(workspace, *stages: str, **environment: str) -> str:
    before = (workspace.root / MODEL).read_bytes()
    message = workspace.fail("dvc", "repro", *stages, **environment)
    workspace.succeed("git", "checkout", "--quiet", "params.yaml", "dvc.lock")
    workspace.succeed("dvc", "checkout", "--quiet", "--force")
    assert (workspace.root / MODEL).read_bytes() == before
    return message


def write_images(root, sizes: dict[str, int]) -> None:
    for name, count in sizes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.effect_noise((8, 8), 50).save(root / name / f"{index}.png")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  epochs: 3", "  epoch: 3", "finetune.epoch: unknown key; did you mean epochs?"),
        ("\nobjective:", "\nobjectiv:", "objectiv: unknown key; did you mean objective?"),
        ("learning_rate: 1.0e-3", "learning_rate: -1", "finetune.learning_rate: got -1, expected greater than 0"),
        ("scale: group", "scale: groups", "objective.scale: got 'groups', expected 'group' or 'none'"),
    ],
)
def test_params(workspace, old, new, message):
    text = (workspace.root / "params.yaml").read_text()
    head, found, tail = text.rpartition(old)
    assert found
    (workspace.root / "params.yaml").write_text(head + new + tail)
    assert message in repro_fails(workspace)


def test_unknown_encoder(workspace):
    workspace.set(encoder__name="resnet81")
    message = repro_fails(workspace)
    assert "timm has no encoder 'resnet81'" in message
    assert "resnet18" in message


def test_image_size_the_encoder_refuses(workspace):
    workspace.set(encoder__name="test_vit", encoder__image_size=50)
    assert "cannot take image_size 50: its patches are 16 pixels wide, so use a multiple such as 48" in repro_fails(
        workspace
    )


def test_source_that_does_not_exist(workspace):
    workspace.set(data__source="folder:data/raw/none")
    message = repro_fails(workspace)
    assert "data.source is folder:data/raw/none" in message
    assert "does not exist" in message


def test_class_with_a_single_image(workspace):
    write_images(workspace.root / "data/raw/pets", {"cat": 5, "dog": 1})
    workspace.set(data__source="folder:data/raw/pets")
    assert "'dog' has 1; expected at least 3" in repro_fails(workspace)


def test_nan_loss_stops_and_keeps_the_last_good_model(workspace):
    # the step that follows is so long that the weights overflow
    workspace.set(finetune__learning_rate="1.0e+30", finetune__warmup_epochs=0)
    message = repro_fails(workspace, "finetune@grpo_rm")
    assert "training stopped at step 2 (epoch 1)" in message
    assert "Lower learning_rate" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finetune__optimizer": "adamv"}, "timm has no optimizer 'adamv'; nearest: "),
        ({"finetune__freeze_blocks": 99}, "freeze_blocks is 99, but the encoder has "),
    ],
)
def test_what_only_the_training_can_know(workspace, values, message):
    workspace.set(**values)
    assert message in workspace.fail("python", "-m", "pipelines.finetune", "cross_entropy")


@pytest.mark.parametrize(
    ("rewards", "costs", "message"),
    [
        ("data.rewards.mine:reward: 1", "null", "there is no module data.rewards.mine"),
        ("data.rewards.example:ordinal: 1", "null", "data.rewards.example has no 'ordinal'; did you mean"),
        ("cost_matrix: 1", "data/rewards/none.csv", "cost matrix data/rewards/none.csv not found"),
    ],
)
def test_rewards_that_are_not_there(workspace, rewards, costs, message):
    text = (workspace.root / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(text.replace("    uniformity: 1.0", f"    {rewards}"))
    workspace.set(objective__cost_matrix=costs)
    assert message in workspace.fail("python", "-m", "pipelines.finetune", "grpo_rm")


def test_a_batch_that_processes_cannot_share(workspace):
    workspace.set(finetune__batch_size=63)
    message = workspace.fail("python", "-m", "pipelines.finetune", "cross_entropy", GRPO_RM_PROCESSES="2")
    assert "batch_size is 63 with" in message and "2 processes" in message


def test_tracking_server_that_refuses(workspace):
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    start = time.monotonic()
    message = repro_fails(workspace, "--force", "--single-item", "pretrain", MLFLOW_TRACKING_URI=uri)
    assert time.monotonic() - start < 10
    assert f"the tracking server {uri} does not answer" in message


def test_tracking_server_that_hangs(workspace):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        workspace.fail("python", "-m", "pipelines.pretrain", MLFLOW_TRACKING_URI=uri)
        assert time.monotonic() - start < 10


def test_validation_failure_names_rows_and_stops(workspace):
    write_images(workspace.root / "data/raw/broken", {"cat": 12, "dog": 12})
    (workspace.root / "data/raw/broken/cat/broken.png").write_bytes(b"not an image")
    workspace.set(data__source="folder:data/raw/broken")
    done = workspace.run("dvc", "repro", "validate")
    assert done.returncode != 0
    assert "cat/broken.png" in done.stdout + done.stderr
    assert "error: " in done.stderr


def test_stages_out_of_order(workspace):
    (workspace.root / "models/pretrain/config.json").unlink()
    assert "dvc repro" in workspace.fail("python", "-m", "pipelines.finetune", "grpo_rm")
    assert "expected `python -m pipelines.finetune" in workspace.fail("python", "-m", "pipelines.finetune", "ppo")
