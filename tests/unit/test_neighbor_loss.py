"""The policy over remembered images: its rewards and gradient by hand, by a loop, and in a training."""

import math
from dataclasses import replace
from itertools import compress

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


def naive_gradient(embeddings, weights, others, *, same, balance, temperature):
    """Image by image and candidate by candidate, from the formulas of the docstring, in float64."""
    embeddings, total = embeddings.double().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for embedding, weight, is_same in zip(embeddings, weights, same, strict=True):
        scores = []
        for other, share in zip(others.double(), balance, strict=True):
            cosine = embedding @ other / (embedding.norm() * other.norm())
            scores.append(share * (cosine / temperature).exp())
        probs = [score / sum(scores) for score in scores]
        of_class = sum(compress(balance, is_same))
        rewards = [
            right - of_class * prob.item() / share for right, prob, share in zip(is_same, probs, balance, strict=True)
        ]
        std = math.sqrt(sum(share * reward**2 for share, reward in zip(balance, rewards, strict=True)))
        mass = sum(prob.item() for prob in compress(probs, is_same))
        for share, reward, prob in zip(balance, rewards, probs, strict=True):
            total = total - weight * mass * share * reward / (std + EPS) * prob.log()
    return torch.autograd.grad(total, embeddings)[0].float()


def test_by_hand():
    """Classes 0, 0, 1 have the weights .25, .25, .5; with exp(cos) = 2, 1, 1 the probabilities are .4, .2, .4.

    r = (1 - .5 * .4 / .25, 1 - .5 * .2 / .25, -.5 * .4 / .5) = (.2, .6, -.4), std .4243, A = (.4606, 1.3817, -.9211).
    Cosines change with the second coordinate by .7208, 1 and -1, and by the first one not at all, so the gradient is
    -.6 (.25 * .4606 * .7208 + .25 * 1.3817 + .5 * .9211).
    """
    ahead = math.log(2)
    candidates = torch.tensor([[ahead, math.sqrt(1 - ahead**2)], [0.0, 1.0], [0.0, -1.0]])
    memory = remembering(candidates, torch.tensor([0, 0, 1]))
    (gradient,), output = gradient_of(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.ones(1), memory, temperature=1.0
    )
    assert output.stats["neighbor_accuracy"] == pytest.approx(0.6)
    assert gradient.tolist() == pytest.approx([0.0, -0.5334], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_naive_loop(temperature):
    """Four images are remembered of class 1, three of class 0 and two of class 2."""
    torch.manual_seed(0)
    others, labels, targets = torch.randn(9, 4) * 3, [0, 1, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 7]
    embeddings, weights = torch.randn(6, 4), torch.rand(6)
    memory = remembering(others, torch.tensor(labels))
    gradient, _ = gradient_of(embeddings, torch.tensor(targets), weights, memory, temperature=temperature)
    expected = naive_gradient(
        embeddings,
        weights,
        others,
        same=[[target == label for label in labels] for target in targets],
        balance=[1 / 3 / labels.count(label) for label in labels],
        temperature=temperature,
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_images_come_to_their_class():
    """Followed for long, the gradient leaves hardly any probability to other classes; it never makes them longer."""
    torch.manual_seed(0)
    labels = torch.arange(20) % 4
    memory = remembering(torch.eye(4, 8)[labels] + 0.2 * torch.randn(20, 8), labels)
    embeddings, case = torch.randn(12, 8), (torch.arange(12) % 4, torch.full((12,), 1 / 12), memory)
    _, before = gradient_of(embeddings, *case, temperature=0.5)
    for _ in range(1500):
        gradient, after = gradient_of(embeddings, *case, temperature=0.5)
        assert (gradient * embeddings).sum(dim=1).abs().max() < 1e-5
        embeddings = embeddings - gradient
    assert before.stats["neighbor_accuracy"] < 0.4
    assert after.stats["neighbor_accuracy"] > 0.7


def test_how_many_of_a_class_are_remembered_does_not_count():
    torch.manual_seed(0)
    others, labels = torch.randn(8, 4), torch.arange(8) % 4
    case = torch.randn(6, 4), torch.arange(6) % 4, torch.full((6,), 1 / 6)
    gradient, _ = gradient_of(*case, remembering(others, labels), temperature=0.2)
    often = torch.cat([torch.arange(8), *[torch.arange(8)[labels == 1]] * 9])
    imbalanced, _ = gradient_of(*case, remembering(others[often], labels[often]), temperature=0.2)
    torch.testing.assert_close(imbalanced, gradient)


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
    """Two remembered images have label 2, one each of the others: weights (1 + 1/2) / 2, 1 and 1/2 of their sum."""
    torch.manual_seed(0)
    embeddings, weights, others = torch.randn(2, 3), torch.rand(2), torch.randn(3, 3)
    members = torch.tensor([[True, True, False], [False, False, True]])
    memory = remembering(others, torch.tensor([[False, True, True], [True, False, False], [False, False, True]]))
    gradient, _ = gradient_of(embeddings, members, weights, memory, temperature=0.1)
    same, balance = [[True, True, False], [True, False, True]], [0.75 / 2.25, 1 / 2.25, 0.5 / 2.25]
    expected = naive_gradient(embeddings, weights, others, same=same, balance=balance, temperature=0.1)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


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
