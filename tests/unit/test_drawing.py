"""What plans, priors and rollouts look like in a shell."""

import numpy as np
import pytest

import stp_rs
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.types import Mark, StopReason


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"temporal": "steps:0.6"}, ["20 free tokens, 12 forwards; masked before each: ███▇▇▆▆▆▅▅▄▄", "1 x 11, 9"]),
        ({"block_length": 5}, ["20 free tokens, 20 forwards", "revealed by each: 1 x 20"]),
        ({"quota": "powers_of_two"}, ["20 free tokens, 5 forwards", "revealed by each: 1, 2, 4, 8, 5"]),
        ({"temporal": "confidence:0.9"}, ["how many tokens a forward reveals depends on the model"]),
        ({"temporal": "steps:0.0001"}, ["1 forwards; masked before each: █", "revealed by each: 20"]),
    ],
)
def test_a_plan_is_drawn_below_its_arguments(options: dict[str, str], drawn: list[str]):
    head, *lines = repr(stp_rs.Unmasking(20, **options)).split("\n")
    assert head.startswith("Unmasking(20, block_length=")
    assert all(part in "\n".join(lines) for part in drawn)


@pytest.mark.parametrize("steps", [1, 2, 300, 1 << 20])
def test_a_plan_of_any_length_fits_a_line(steps: int):
    lines = repr(stp_rs.Unmasking(steps, temporal="fill_ratio:0.5")).split("\n")
    assert max(map(len, lines[1:])) <= 120


def test_a_prior_is_drawn_by_what_fixed_each_token():
    ids = np.full((8, 5), -1, dtype=np.int64)
    ids[:, 0] = 7
    other = np.full((8, 5), -1, dtype=np.int64)
    other[0, 3] = 9
    prior = stp_rs.PriorSet.from_dense(ids, "template").compose(stp_rs.PriorSet.from_dense(other))
    lines = repr(prior).split("\n")
    assert lines[0] == "PriorSet(rows=8, num_anchors=9)"
    assert lines[1:3] == ["   0 T..#", "   1 T..."]
    assert lines[-2:] == ["   and 2 rows more", "   . free, # custom, T template"]
    assert repr(stp_rs.PriorSet.empty(3)) == "PriorSet(rows=3, num_anchors=0)"


def test_a_rollout_is_drawn_by_when_each_token_was_revealed():
    keys = np.zeros(2, np.uint64), np.array([0, 0])
    prompts = PromptBatch([{}, {}], np.array([[5], [6]]), np.array([1, 1], np.int32), *keys)
    steps = np.array([[Mark.PRIOR, 1, 0, 2, 2], [40, 3, Mark.UNDRAWN, Mark.OUTSIDE, Mark.OUTSIDE]], np.int32)
    rollout = Rollout.of(prompts, np.zeros((2, 5), np.int64), steps)
    reasons = np.array([StopReason.TEMPORAL, StopReason.PLAN], np.uint8)
    rollout = rollout.replaced(stop_reason=reasons, nfe=np.array([3, 41], np.int32), completions=["a\x1b[2J", "b" * 99])
    lines = repr(rollout.replaced(reward=np.array([1.0, np.nan], np.float32))).split("\n")
    assert lines[0] == "Rollout(2 completions of 1 prompts, 5 tokens, 22.0 forwards each, mean reward 1.000)"
    assert lines[1] == "   0 |10~~  3 forwards, reward 1.000  a\\x1b[2J"
    assert lines[2].startswith("   1 +3/  41 forwards, reward nan  bbbb")
    assert max(map(len, lines)) < 120
    assert "Rollout(0 completions" in repr(rollout.select([]))
