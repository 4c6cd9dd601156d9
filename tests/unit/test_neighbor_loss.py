"""The policy over remembered images: its rewards and gradient by hand, by a loop, and in a training."""

import math
from dataclasses import replace

import pytest
import torch
from test_learner import Recorder
from toy_training import OBJECTIVE, create_model, create_trainer, grpo, weights_of

from grpo_rm.losses import GrpoRmLoss
from grpo_rm.memory import Memory, Places
from grpo_rm.neighbors import EPS, neighbor_loss
from grpo_rm.sites import Sites

NEIGHBORS = GrpoRmLoss(replace(OBJECTIVE, neighbor_weight=4.0))


def remembering(embeddings, labels, size=100):
    memory = Memory(size)
    memory.add(embeddings, labels)
    return memory


def gradient_of(embeddings, targets, weights, memory, *, temperature):
    embeddings = embeddings.clone().requires_grad_()
    output = neighbor_loss(Places(embeddings, targets, weights, memory), temperature=temperature)
    return torch.autograd.grad(output.loss, embeddings)[0], output


def naive_gradient(embeddings, targets, weights, memory, *, temperature):
    """Image by image and candidate by candidate, from the formulas of the docstring, in float64."""
    embeddings = embeddings.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for embedding, target, weight in zip(embeddings, targets, weights, strict=True):
        cosines = [
            embedding @ other / (embedding.norm() * other.norm()) for other in memory.embeddings.double().unbind()
        ]
        exps = [(cosine / temperature).exp() for cosine in cosines]
        probs = [value / sum(exps) for value in exps]
        right = [bool(target == label) for label in memory.labels]
        rewards = [is_right - sum(right) * prob.item() for is_right, prob in zip(right, probs, strict=True)]
        std = math.sqrt(sum(reward**2 for reward in rewards) / len(rewards))
        if any(right):
            terms = [reward / (std + EPS) * prob.log() for reward, prob in zip(rewards, probs, strict=True)]
            total = total - weight * sum(terms) / len(terms)
    return torch.autograd.grad(total, embeddings)[0].float()


def test_by_hand():
    """Probabilities .5, .25, .25 and the first two of the class: r = (0, .5, -.5), std .4082, A = (0, 1.1954, -1.1954).

    What has an advantage lies straight to the left and to the right, so the gradient is that of the cosines:
    -(1.1954 * 1 + -1.1954 * -1) / 3.
    """
    ahead = math.log(2)
    candidates = torch.tensor([[ahead, math.sqrt(1 - ahead**2)], [0.0, 1.0], [0.0, -1.0]])
    memory = remembering(candidates, torch.tensor([0, 0, 1]))
    (gradient,), output = gradient_of(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.ones(1), memory, temperature=1.0
    )
    assert output.stats["neighbor_accuracy"] == pytest.approx(0.75)
    assert gradient.tolist() == pytest.approx([0.0, -0.7970], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_naive_loop(temperature):
    torch.manual_seed(0)
    memory = remembering(torch.randn(9, 4) * 3, torch.tensor([0, 1, 1, 2, 0, 1, 2, 0, 1]))
    case = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 7]), torch.rand(6), memory
    gradient, _ = gradient_of(*case, temperature=temperature)
    torch.testing.assert_close(gradient, naive_gradient(*case, temperature=temperature), rtol=1e-4, atol=1e-5)


def test_images_come_to_their_class():
    """Followed for long, the gradient leaves hardly any probability to other classes; it never makes them longer."""
    torch.manual_seed(0)
    labels = torch.arange(20) % 4
    memory = remembering(torch.eye(4, 8)[labels] + 0.2 * torch.randn(20, 8), labels)
    embeddings, case = torch.randn(12, 8), (torch.arange(12) % 4, torch.full((12,), 1 / 12), memory)
    _, before = gradient_of(embeddings, *case, temperature=0.5)
    for _ in range(300):
        gradient, after = gradient_of(embeddings, *case, temperature=0.5)
        assert (gradient * embeddings).sum(dim=1).abs().max() < 1e-5
        embeddings = embeddings - gradient
    assert before.stats["neighbor_accuracy"] < 0.4
    assert after.stats["neighbor_accuracy"] > 0.7


def test_the_length_of_an_embedding_does_not_count():
    torch.manual_seed(0)
    memory = remembering(torch.randn(20, 8), torch.arange(20) % 4)
    embeddings, case = torch.randn(12, 8), (torch.arange(12) % 4, torch.full((12,), 1 / 12), memory)
    gradient, _ = gradient_of(embeddings, *case, temperature=0.1)
    longer, _ = gradient_of(10 * embeddings, *case, temperature=0.1)
    torch.testing.assert_close(longer * 10, gradient)


def test_the_push_ends_where_all_of_the_class_are_as_near_and_no_others():
    memory = remembering(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]))
    gradient, output = gradient_of(
        torch.tensor([[1.0, 0.1]]), torch.tensor([0]), torch.ones(1), memory, temperature=0.05
    )
    assert gradient.abs().max() < 1e-6
    assert output.stats["neighbor_accuracy"] == pytest.approx(1)


def test_what_does_not_count_has_no_gradient():
    """No label, weight 0, no image of the class in memory; and the first batch, before anything is remembered."""
    torch.manual_seed(0)
    memory = remembering(torch.randn(5, 3), torch.tensor([0, 0, 1, 1, -1]))
    assert len(memory) == 4
    targets, weights = torch.tensor([-1, 0, 2, 1]), torch.tensor([0.0, 0.0, 0.5, 0.5])
    gradient, _ = gradient_of(torch.randn(4, 3), targets, weights, memory, temperature=0.1)
    assert gradient[:3].abs().max() == 0
    assert gradient[3].abs().max() > 0
    first = neighbor_loss(Places(torch.randn(4, 3), targets, weights, Memory(5)), temperature=0.1)
    assert first.loss == 0
    assert first.stats == {"neighbor_accuracy": 0}


def test_one_label_in_common_is_the_same_class():
    torch.manual_seed(0)
    embeddings, others = torch.randn(2, 3), torch.randn(3, 3)
    members = torch.tensor([[True, True, False], [False, False, True]])
    memory = remembering(others, torch.tensor([[False, True, True], [True, False, False], [False, False, True]]))
    several, _ = gradient_of(embeddings, members, torch.ones(2), memory, temperature=0.1)
    for row, same in enumerate([[1, 1, 0], [1, 0, 1]]):
        single = remembering(others, torch.tensor(same))
        alone, _ = gradient_of(embeddings[row : row + 1], torch.tensor([1]), torch.ones(1), single, temperature=0.1)
        torch.testing.assert_close(several[row : row + 1], alone)


def test_memory_forgets_the_oldest():
    memory = Memory(4)
    for label in range(3):
        memory.add(torch.full((3, 2), float(label), requires_grad=True), torch.tensor([label, label, -1]))
    assert memory.labels.tolist() == [1, 1, 2, 2]
    assert memory.embeddings[:, 0].tolist() == [1, 1, 2, 2]
    assert not memory.embeddings.requires_grad
    other = Memory(4)
    other.load_state_dict(memory.state_dict())
    assert other.labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="size is 0, expected at least 1 place"):
        Memory(0)


def test_a_state_of_another_device_comes_to_the_memory():
    state = Memory(2).state_dict()
    memory = Memory(2, device=torch.device("meta"))
    memory.load_state_dict(state)
    assert all(each.device.type == "meta" for each in (memory.embeddings, memory.labels))


def test_a_training_remembers_its_last_images(tmp_path):
    sizes = []

    class Sizes(Recorder):
        def __call__(self, sites):
            sizes.append(len(sites.places.memory))
            return super().__call__(sites)

    trainer = create_trainer(
        tmp_path, recorder := Sizes(NEIGHBORS), model=create_model("test_vit"), options={"memory_size": 40}
    )
    trainer.fit()
    assert sizes == [0, 16, 32, 40, 40, 40]
    last, memory = recorder.sites[-1], trainer.learner.memory
    assert torch.equal(memory.labels[-16:], last.targets)
    torch.testing.assert_close(memory.embeddings[-16:], last.places.embeddings.detach())
    assert trainer.history[-1]["neighbor_accuracy"] > 0.3


def test_no_more_than_an_epoch_is_remembered(tmp_path):
    trainer = create_trainer(tmp_path, NEIGHBORS, model=create_model("test_vit"), options={"memory_size": 1000})
    trainer.fit()
    assert len(trainer.learner.memory) == 48


def test_it_changes_what_is_learned(tmp_path):
    weights = []
    for name, loss, options in (("with", NEIGHBORS, {"memory_size": 48}), ("without", grpo, {})):
        trainer = create_trainer(tmp_path / name, loss, model=create_model("test_vit"), options=options)
        trainer.fit()
        weights.append(weights_of(trainer.model)["head.weight"])
    assert not torch.equal(*weights)


def test_a_loss_that_looks_for_neighbors_needs_a_memory():
    sites = Sites(torch.zeros(2, 2), torch.tensor([0, 1]), torch.ones(2) / 2)
    with pytest.raises(
        ValueError, match=r"neighbor_weight is 4.0 and the sites have no places, expected what is remembered"
    ):
        NEIGHBORS(sites)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"neighbor_weight": -1.0}, "neighbor_weight is -1.0"), ({"neighbor_temperature": 0.0}, "more than 0")],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(OBJECTIVE, **setting)
