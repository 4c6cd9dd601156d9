"""Embeddings and logits of a whole split."""

import numpy as np
import pytest
from toy_training import CPU, VAL, are_equal, create_model, plain, weights_of

from grpo_rm.datasets import Batches
from grpo_rm.inference import predict, predict_all


@pytest.mark.parametrize("is_training", [True, False])
def test_predict_uses_evaluation_mode_and_restores_the_mode(is_training):
    model = create_model(drop_path_rate=0.9).train(is_training)
    before = weights_of(model)
    batches = Batches(VAL, plain, channels=1, batch_size=5)
    first, second = (predict(model, batches.epoch(0), device=CPU) for _ in range(2))
    assert model.training is is_training
    assert are_equal(before, weights_of(model))
    assert np.array_equal(first.logits, second.logits)
    assert first.embeddings.shape == (24, 8)
    assert first.logits.shape == (24, 2)
    assert first.embeddings.dtype == first.logits.dtype == np.float32
    assert first.labels.tolist() == VAL.labels.tolist()
    whole = predict(model, Batches(VAL, plain, channels=1, batch_size=24).epoch(0), device=CPU)
    np.testing.assert_allclose(first.logits, whole.logits, atol=1e-6)


def test_models_are_run_together_as_alone():
    models = {"one": create_model(drop_path_rate=0.9).train(True), "other": create_model("test_vit").train(False)}
    together = predict_all(models, Batches(VAL, plain, channels=1, batch_size=5).epoch(0), device=CPU)
    assert (models["one"].training, models["other"].training) == (True, False)
    for name, model in models.items():
        alone = predict(model, Batches(VAL, plain, channels=1, batch_size=5).epoch(0), device=CPU)
        for field in ("embeddings", "logits", "labels"):
            np.testing.assert_array_equal(getattr(together[name], field), getattr(alone, field))
    assert not np.array_equal(together["one"].logits, together["other"].logits)
