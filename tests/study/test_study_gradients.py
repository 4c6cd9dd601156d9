"""The pushes of the arms, against what is known of them in closed form."""

import math

import pytest

from study.arms import ARMS
from study.gradients import NUM_OUTPUTS, push


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99])
def test_pushes(probability):
    """Cross-entropy 1 - p, unscaled a tenth of it, accuracy alone sqrt(K - 1) / K; by the policy sqrt(p (1 - p))."""
    assert push(ARMS["cross_entropy"], probability) == pytest.approx(1 - probability, rel=1e-4)
    assert push(ARMS["unscaled"], probability) == pytest.approx((1 - probability) / NUM_OUTPUTS, rel=1e-4)
    deviation = math.sqrt(NUM_OUTPUTS - 1) / NUM_OUTPUTS
    expected = (1 - 1 / NUM_OUTPUTS) / (deviation + 0.01) / NUM_OUTPUTS
    assert push(ARMS["accuracy_only"], probability) == pytest.approx(expected, rel=1e-4)


def test_the_policy_lets_go_of_what_it_thinks_wrong_and_of_what_it_knows():
    unsure, wrong, known = (push(ARMS["policy"], probability) for probability in (0.5, 0.001, 0.999))
    assert wrong < 0.1 * unsure
    assert known < 0.01 * unsure
