"""What is run: valid parameters, keys, and the choice of a rate."""

import dataclasses

import pytest
import yaml

from grpo_rm.config import load_config
from study import protocol, workspace
from study.arms import ARMS, CONTROL
from study.protocol import choose_rate, configured, make_trial
from study.tasks import ENCODER, STUDIED, TASKS
from study.workspace import MANIFEST, write_params, write_rows

FASHION = TASKS["fashion"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder of workspaces."""
    for module in (workspace, protocol):
        monkeypatch.setattr(module, "WORK", tmp_path)
    return tmp_path


@pytest.fixture
def opened(work):
    """The workspace of fashion, with a manifest that stands for its data."""
    manifest = work / "fashion" / MANIFEST
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"rows")
    write_params(FASHION, work / "fashion/params.yaml")
    return work


@pytest.mark.parametrize("task", [*STUDIED, ENCODER], ids=lambda task: task.name)
def test_every_arm_has_valid_parameters_on_every_task(task, tmp_path):
    write_params(task, tmp_path / "params.yaml")
    config = load_config(tmp_path / "params.yaml")
    assert config.tracking.experiment == "study"
    for arm in task.arms.values():
        assert configured(config, arm, 0.004, 7).finetune.learning_rate == 0.004


def test_a_workspace_keeps_what_a_task_does_not_name(tmp_path):
    write_params(FASHION, tmp_path / "params.yaml")
    written, ours = (yaml.safe_load((folder / "params.yaml").read_text()) for folder in (tmp_path, workspace.ROOT))
    assert written["finetune"] == ours["finetune"] | {"epochs": 15}
    assert written["objective"] == ours["objective"]
    assert written["data"]["source"] == "npz:images"


def test_names_are_those_of_the_arms_and_tasks():
    assert all(name == arm.name for name, arm in ARMS.items())
    assert ARMS[CONTROL].objective is None


def key(arm="neighbors", stage="tune", rate=0.001, seed=0, **changed):
    return make_trial(FASHION, dataclasses.replace(ARMS[arm], **changed), stage, rate, seed).key


@pytest.mark.usefixtures("opened")
def test_keys_follow_from_parameters_alone():
    assert key() == key()
    keys = [
        key(),
        key("literal"),
        key(CONTROL),
        key(stage="final"),
        key(rate=0.002),
        key(seed=1),
        key(finetune={"epochs": 3}),
        key(objective={"eps": 0.5}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(name="another") == key()


def test_keys_follow_from_the_data(opened):
    before = key()
    (opened / "fashion" / MANIFEST).write_bytes(b"other rows")
    assert key() != before


def test_the_control_does_not_depend_on_the_objective(opened):
    before, other = key(CONTROL), key()
    path = opened / "fashion/params.yaml"
    path.write_text(path.read_text().replace("beta: 0.0", "beta: 0.1"))
    assert key(CONTROL) == before
    assert key() != other


@pytest.mark.usefixtures("opened")
def test_a_trial_that_has_run_is_found_under_the_present_name_of_its_arm():
    trial = make_trial(FASHION, ARMS["neighbors"], "tune", 0.001, 0)
    assert protocol.find_rows([trial]) == []
    write_rows("fashion", trial.key, [{"task": "fashion", "arm": "former name"}])
    assert protocol.find_rows([trial]) == [{"task": "fashion", "arm": "neighbors"}]


RATES = FASHION.rates


@pytest.fixture
def two_seeds(monkeypatch):
    monkeypatch.setattr(protocol, "TUNING_SEEDS", (100, 101))


def tuned(values):
    """Rows whose head, k-NN and probe are the values of a rate, and twice that, and 0."""
    knn, probe = protocol.EMBEDDING_CRITERIA
    return [
        {"key": f"{rate}/{seed}", "learning_rate": rate}
        | ({"error": "nan"} if value is None else {"val/accuracy": value, f"val/{knn}": 2 * value, f"val/{probe}": 0.0})
        for rate, of_seeds in zip(RATES, values, strict=True)
        for seed, value in zip(protocol.TUNING_SEEDS, of_seeds, strict=True)
    ]


@pytest.mark.usefixtures("two_seeds")
def test_the_rate_of_the_highest_mean_is_chosen():
    assert choose_rate(tuned([(0.1, 0.2), (0.3, 0.3), (0.5, 0.0), (0.2, 0.2)]), FASHION) == RATES[1]


@pytest.mark.usefixtures("two_seeds")
def test_of_equal_rates_the_lower_is_chosen():
    assert choose_rate(tuned([(0.1, 0.1), (0.3, 0.3), (0.3, 0.3), (0.2, 0.2)]), FASHION) == RATES[1]


@pytest.mark.usefixtures("two_seeds")
def test_a_rate_with_a_training_that_diverged_is_out():
    assert choose_rate(tuned([(0.1, 0.1), (0.2, 0.2), (0.9, None), (0.1, 0.1)]), FASHION) == RATES[1]
    assert choose_rate(tuned([(None, None)] * 4), FASHION) is None


@pytest.mark.usefixtures("two_seeds")
def test_no_rate_is_chosen_before_all_trials_are_there():
    assert choose_rate(tuned([(0.1, 0.1)] * 4)[1:], FASHION) is None


def test_what_a_task_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_RM_SHARED_DATA", str(tmp_path))
    reason = workspace.why_skipped(FASHION)
    assert reason == f"{tmp_path / 'fashion_mnist'} not found; GRPO_RM_SHARED_DATA names another folder"
    assert workspace.why_skipped(TASKS["digits"]) is None
