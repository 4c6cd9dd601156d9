"""Rewards per (site, candidate): ours against numbers by hand, and what is said of a user's own."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_rm.advantages import group_advantages
from grpo_rm.policy import log_policy
from grpo_rm.rewards import (
    TRUST,
    ConfusionCostReward,
    Group,
    MatrixReward,
    accuracy_reward,
    check_rewards,
    class_similarity,
    compute_rewards,
    import_reward,
    log_uniformity_reward,
    trusted_accuracy_reward,
    uniformity_reward,
)


def group_of(targets, logits, outputs=None):
    """A group of all outputs, or of chosen ones."""
    is_full = outputs is None
    outputs = torch.arange(logits.shape[1]).expand_as(logits) if is_full else outputs
    return Group(targets, outputs, log_policy(logits.gather(1, outputs)), is_full=is_full)


def labels(*values, num_outputs=3):
    return group_of(torch.tensor(values), torch.zeros(len(values), num_outputs))


MEMBERS = torch.tensor([[True, False, True], [False, False, False]])
COSTS = torch.tensor([[0.0, 1.0, 10.0], [2.0, 0.0, 3.0], [4.0, 5.0, 0.0]])


def test_accuracy_golden():
    rewards = accuracy_reward(labels(2, 0))
    assert rewards.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert rewards.dtype == torch.float32


def test_accuracy_of_chosen_candidates():
    chosen = group_of(torch.tensor([2, 0]), torch.zeros(2, 4), torch.tensor([[2, 0], [3, 0]]))
    assert accuracy_reward(chosen).tolist() == [[1, 0], [0, 1]]


def test_accuracy_of_several_labels_is_membership():
    assert accuracy_reward(group_of(MEMBERS, torch.zeros(2, 3))).tolist() == [[1, 0, 1], [0, 0, 0]]
    chosen = group_of(MEMBERS, torch.zeros(2, 3), torch.tensor([[2, 1], [0, 1]]))
    assert accuracy_reward(chosen).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_accuracy_takes_any_integer(dtype):
    group = group_of(torch.tensor([1], dtype=dtype), torch.zeros(1, 2))
    assert accuracy_reward(group).tolist() == [[0, 1]]


@given(st.lists(st.integers(-2, 7), min_size=1, max_size=6), st.booleans())
def test_accuracy_naive_reference(targets, is_full):
    outputs = None if is_full else torch.arange(8).expand(len(targets), 8)
    rewards = accuracy_reward(group_of(torch.tensor(targets), torch.zeros(len(targets), 8), outputs))
    assert rewards.tolist() == [[float(k == target) for k in range(8)] for target in targets]


def test_uniformity_golden():
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05]])
    torch.testing.assert_close(uniformity_reward(group_of(torch.tensor([0]), probs.log())), -probs)


def test_together_they_are_the_error_of_cross_entropy():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    group = group_of(torch.tensor([0, 4, 2, 2]), logits)
    torch.nn.functional.cross_entropy(logits, group.targets, reduction="sum").backward()
    torch.testing.assert_close(accuracy_reward(group) + uniformity_reward(group), -logits.grad)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9))
def test_uniformity_is_minus_a_distribution(logits):
    rewards = uniformity_reward(group_of(torch.tensor([0]), torch.tensor([logits], dtype=torch.float64)))
    assert rewards.sum().item() == pytest.approx(-1)
    assert rewards.min() >= -1 - 1e-12
    assert rewards.max() <= 0


def test_log_uniformity_golden():
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    rewards = log_uniformity_reward(group_of(torch.tensor([0]), probs.log()))
    assert rewards.tolist() == [pytest.approx([0.6931, 1.2040, 1.6094], abs=1e-4)]


def test_log_uniformity_is_the_logit_penalty():
    """Half the sum of the squared logits about their mean."""
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rewards = log_uniformity_reward(group_of(torch.zeros(6, dtype=torch.long), logits.detach()))
    surrogate = (group_advantages(rewards, scale="none") * logits.log_softmax(dim=1)).sum()
    penalty = (logits - logits.mean(dim=1, keepdim=True)).square().sum() / 2
    actual, expected = (torch.autograd.grad(loss, logits)[0] for loss in (-surrogate, penalty))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("num_outputs", "fitted"), [(2, 0.9544), (10, 0.8855), (1000, 0.7587)])
def test_nothing_pushes_at_a_label_that_is_sure_enough(num_outputs, fitted):
    pushes = []
    for label in (fitted - 0.001, fitted + 0.001):
        probs = torch.full((1, num_outputs), (1 - label) / (num_outputs - 1), dtype=torch.float64)
        probs[0, 0] = label
        group = group_of(torch.tensor([0]), probs.log())
        rewards = accuracy_reward(group) + uniformity_reward(group) + 0.03 * log_uniformity_reward(group)
        pushes.append(group_advantages(rewards, scale="none")[0, 0].item())
    assert 0 < pushes[0] < 2e-3
    assert -2e-3 < pushes[1] < 0


def test_trusted_accuracy_golden():
    """P = .2 and .5 + .2: .3807 and .8073."""
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    rewards = trusted_accuracy_reward(group_of(torch.tensor([2]), probs.log()))
    assert rewards.tolist() == [pytest.approx([-0.5 * 0.3807, -0.3 * 0.3807, 0.8 * 0.3807], abs=1e-4)]
    rewards = trusted_accuracy_reward(group_of(MEMBERS[:1], probs.log()))
    assert rewards.tolist() == [pytest.approx([0, -0.6 * 0.8073, 0.6 * 0.8073], abs=1e-4)]


def test_trusted_accuracy_is_generalized_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 2])
    rewards = trusted_accuracy_reward(group_of(targets, logits.detach()))
    surrogate = (rewards * logits.log_softmax(dim=1)).sum()
    of_label = logits.softmax(dim=1).gather(1, targets.unsqueeze(1))
    generalized = ((1 - of_label**TRUST) / TRUST).sum()
    actual, expected = (torch.autograd.grad(loss, logits)[0] for loss in (-surrogate, generalized))
    torch.testing.assert_close(actual, expected)


def test_matrix_golden():
    """The row of the label; for two labels the mean of their rows."""
    reward = MatrixReward(-COSTS)
    assert reward(labels(2, 0)).tolist() == [[-4, -5, 0], [0, -1, -10]]
    chosen = group_of(torch.tensor([2, 0]), torch.zeros(2, 3), torch.tensor([[2, 0], [1, 2]]))
    assert reward(chosen).tolist() == [[0, -4], [-1, -10]]
    assert reward(group_of(MEMBERS, torch.zeros(2, 3))).tolist() == [[-2, -3, -5], [0, 0, 0]]
    chosen = group_of(MEMBERS, torch.zeros(2, 3), torch.tensor([[2, 0], [1, 2]]))
    assert reward(chosen).tolist() == [[-5, -2], [0, 0]]


def test_the_matrix_of_equality_is_the_accuracy_reward():
    group = labels(1, 0, 2, num_outputs=4)
    assert torch.equal(MatrixReward(torch.eye(4))(group), accuracy_reward(group))
    assert torch.equal(MatrixReward(torch.eye(4, dtype=torch.int64))(group), accuracy_reward(group))


def test_a_matrix_that_is_none():
    with pytest.raises(ValueError, match=r"is \(2, 3\), expected \(K, K\): labels by outputs"):
        MatrixReward(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="the reward of label 1 and output 0 is nan, expected a number"):
        MatrixReward(torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]))


def test_confusion_cost_golden():
    """Costs (0, 1, 10) of label 0, probabilities (.5, .3, .2): the confusions lose .3 and 2, which the label gains."""
    reward = ConfusionCostReward(COSTS)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert reward(group_of(torch.tensor([0]), logits)).tolist() == [pytest.approx([2.3, -0.3, -2.0])]
    chosen = group_of(torch.tensor([0]), torch.zeros(1, 3), torch.tensor([[2, 0]]))
    assert reward(chosen).tolist() == [pytest.approx([-5.0, 5.0])]


def test_confusion_cost_of_several_labels():
    """The mean of their rows for what is wrong; each label gains half of it; without a label nothing is gained."""
    rewards = ConfusionCostReward(COSTS)(group_of(MEMBERS, torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()))
    wrong = COSTS[MEMBERS[0]].mean(dim=0) * torch.tensor([0.5, 0.3, 0.2]) * ~MEMBERS[0]
    expected = MEMBERS[0] * wrong.sum() / MEMBERS[0].sum() - wrong
    torch.testing.assert_close(rewards[0], expected)
    assert rewards[1].tolist() == [0, 0, 0]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.integers(0, 5))
def test_confusions_of_cost_one_are_accuracy_and_uniformity(logits, target):
    costs = 3 + 1 - torch.eye(len(logits))  # being right costs 3 as well: it is taken off
    group = group_of(torch.tensor([target % len(logits)]), torch.tensor([logits]))
    expected = accuracy_reward(group) + uniformity_reward(group)
    torch.testing.assert_close(ConfusionCostReward(costs)(group), expected, rtol=1e-5, atol=1e-6)


def test_of_two_classes_the_more_probable_one_is_the_cheaper_choice():
    """Of images that look alike 30 % are of class 1, which costs 4 to miss, and class 0 costs 1: odds 1.2 / 0.7."""
    reward, logits = ConfusionCostReward(torch.tensor([[0.0, 1.0], [4.0, 0.0]])), torch.zeros(1, 2)
    for _ in range(2000):
        of_class = [reward(group_of(torch.tensor([label]), logits)) for label in (0, 1)]
        logits = logits + 0.1 * (0.7 * of_class[0] + 0.3 * of_class[1])
    assert logits.softmax(dim=1)[0, 1].item() == pytest.approx(1.2 / 1.9, abs=1e-3)


def test_where_the_push_of_confusion_costs_ends():
    """p_k = h_k sum_j C[k, j] p_j / sum_y h_y C[y, k] for images of all classes, in shares h, that look alike."""
    torch.manual_seed(0)
    costs, shares, logits = torch.rand(4, 4) + 0.5, torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.zeros(1, 4)
    costs.fill_diagonal_(0)
    reward = ConfusionCostReward(costs)
    for _ in range(3000):
        rewards = torch.cat([reward(group_of(torch.tensor([label]), logits)) for label in range(4)])
        logits = logits + 0.2 * shares @ rewards
    probs = logits.softmax(dim=1)[0]
    torch.testing.assert_close(probs, shares * (costs @ probs) / (shares @ costs), rtol=1e-3, atol=1e-4)


def test_a_confusion_cheaper_than_being_right():
    with pytest.raises(
        ValueError, match="to predict 'a' where 'b' is true costs 2, and being right 3; expected that none"
    ):
        ConfusionCostReward(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), ("a", "b"))
    with pytest.raises(ValueError, match="to predict class 1 where class 0 is true costs 0, and being right 1"):
        ConfusionCostReward(torch.tensor([[1, 0], [2, 0]], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"is \(3, 2\), expected \(K, K\)"):
        ConfusionCostReward(torch.zeros(3, 2))


def test_class_similarity_golden():
    """Means at 0, 45 and 180 degrees, of any length."""
    similarity = class_similarity(torch.tensor([[2.0, 0.0], [3.0, 3.0], [-0.1, 0.0]]))
    half = 0.5**0.5
    torch.testing.assert_close(similarity, torch.tensor([[1, half, -1], [half, 1, -half], [-1, -half, 1]]))
    assert similarity.diagonal().tolist() == [1, 1, 1]
    assert torch.equal(similarity, similarity.T)


def test_class_similarity_of_a_class_without_images():
    with pytest.raises(ValueError, match=r"class_means are \(3,\), expected \(K, D\)"):
        class_similarity(torch.ones(3))
    for bad in (0.0, float("nan")):
        means = torch.tensor([[1.0, 2.0], [bad, bad]])
        with pytest.raises(ValueError, match=rf"of class 1 has the norm {bad}; has the class no image\?"):
            class_similarity(means)


def test_rewards_are_detached_and_of_the_policy_s_precision():
    parameter = torch.ones(2, 3, requires_grad=True)
    group = labels(0, 1)
    for dtype in (torch.float32, torch.float64):
        wide = Group(group.targets, group.outputs, group.old_log_probs.to(dtype))
        rewards = compute_rewards(
            wide, {"own": lambda _: parameter, "whole": lambda g: g.outputs == 0}, torch.tensor([1.0, 1.0])
        )
        assert all(values.dtype == dtype and not values.requires_grad for values in rewards.values())
        assert rewards["whole"].tolist() == [[1, 0, 0]] * 2


def test_what_a_reward_says_of_void_sites_is_not_looked_at():
    bad = torch.tensor([[1.0, 2.0, 3.0], [float("nan")] * 3])
    weights = torch.tensor([1.0, 0.0])
    check_rewards(labels(0, -1), {"own": lambda _: bad}, weights)
    assert compute_rewards(labels(0, -1), {"own": lambda _: bad}, weights)["own"].tolist() == [[1, 2, 3], [0, 0, 0]]


def test_products_in_a_reward_stay_exact_under_autocast():
    matrix = MatrixReward(torch.tensor([[0.123456789, 1.0], [2.0, 0.3333333]]))
    group = group_of(torch.tensor([[True, True]]), torch.zeros(1, 2))
    expected = matrix(group)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(matrix(group), expected)  # else nothing is tested here
        assert torch.equal(compute_rewards(group, {"matrix": matrix}, torch.ones(1))["matrix"], expected)


def failing(_):
    raise KeyError("cat")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda _: 3.0, r"the reward 'own' is float, expected a tensor of shape \(2, 3\)"),
        (lambda _: torch.zeros(3, 2), r"'own' is of shape \(3, 2\), expected \(2, 3\): a number for each site"),
        (lambda _: torch.zeros(2), r"'own' is of shape \(2,\), expected \(2, 3\)"),
        (lambda _: torch.zeros(2, 3, dtype=torch.complex64), r"'own' is torch\.complex64, expected real numbers"),
        (lambda _: torch.zeros(2, 3, device="meta"), r"'own' is on meta, expected cpu: make its tensors with"),
        (lambda g: g.outputs / g.outputs, r"'own' is nan at site 0 of the batch for output 0 \(2 such values\)"),
        (failing, r"'own' failed: KeyError: 'cat'"),
    ],
)
def test_a_reward_that_is_none_is_named(reward, message):
    rewards = {"accuracy": accuracy_reward, "own": reward}
    with pytest.raises(ValueError, match=message):
        check_rewards(labels(0, 1), rewards, torch.ones(2))


def test_rewards_that_are_fine_pass():
    rewards = {
        "accuracy": accuracy_reward,
        "uniformity": uniformity_reward,
        "matrix": MatrixReward(-COSTS),
        "bool": lambda group: group.outputs == 0,
        "half": lambda group: group.old_probs.half(),
    }
    check_rewards(labels(0, 1), rewards, torch.ones(2))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user's rewards on the path."""
    folder = tmp_path / "own_rewards"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "good.py").write_text(
        "LIMIT = 3\ndef brightness_reward(group):\n    return group.old_log_probs.exp()\nclass Nothing: ...\n"
    )
    (folder / "needs.py").write_text("import a_library_that_is_not_installed\n")
    (folder / "wrong.py").write_text("def broken(:\n")
    (folder / "relative.py").write_text("from own_rewards.good import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("own_rewards")]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_import_of_a_reward():
    reward = import_reward("own_rewards.good:brightness_reward")
    assert reward(labels(0)).tolist() == [pytest.approx([1 / 3] * 3)]
    assert import_reward("grpo_rm.rewards:accuracy_reward") is accuracy_reward


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_rewards.good", 'expected "package.module:function"'),
        (":f", 'expected "package.module:function"'),
        ("own_rewards.good:", 'expected "package.module:function"'),
        (".good:f", 'expected "package.module:function"'),
        ("not_there:f", "there is no module not_there; is its folder the current one, or on PYTHONPATH"),
        ("own_rewards.not_there:f", r"there is no module own_rewards\.not_there"),
        (
            "own_rewards.needs:f",
            "importing own_rewards.needs failed: No module named 'a_library_that_is_not_installed'",
        ),
        ("own_rewards.wrong:f", "importing own_rewards.wrong failed: SyntaxError: "),
        ("own_rewards.relative:f", "importing own_rewards.relative failed: ImportError: cannot import name"),
        ("own_rewards.good:brightnes", "has no 'brightnes'; did you mean 'brightness_reward'"),
        ("own_rewards.good:xyz", "has no 'xyz'; expected one of brightness_reward, Nothing"),
        ("own_rewards.good:LIMIT", "'own_rewards.good:LIMIT' is int, expected a function of a Group"),
    ],
)
def test_import_errors(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        import_reward(path)
    assert str(caught.value).startswith(f"reward {path!r}")
