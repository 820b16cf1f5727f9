"""The first weights of a tiny policy have a size that its width can learn from."""

import pytest

from stp_rs.config import PolicyConfig
from stp_rs.models import tiny_policy


@pytest.mark.parametrize(("width", "size"), [(32, 0.1), (64, 0.1), (128, 0.0707), (256, 0.05)])
def test_weights_are_near_one_over_the_root_of_the_width_and_at_most_a_tenth(width: int, size: float):
    model = tiny_policy(PolicyConfig(hidden_size=width), vocab_size=20, max_length=8, seed=0)
    for layer in model.bert.encoder.layer:
        assert float(layer.intermediate.dense.weight.detach().std()) == pytest.approx(size, rel=0.05)
