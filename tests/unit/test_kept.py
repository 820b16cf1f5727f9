"""Kept rollouts: what is written is what was decoded, and the twin is the unpruned decode of the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stp_rs.cli.main import main
from stp_rs.config import TaskConfig
from stp_rs.data.prompts import encode_prompts
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import CheckpointError
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.priors import compose_priors
from stp_rs.rollout.generate import generate
from stp_rs.rollout.params import make_unmasking, sampling_law
from stp_rs.rollout.rewards import Rewards
from stp_rs.tasks import get_task
from stp_rs.train.kept import GROUPS, Keeper, kept_files, read_scenes, shown_rows, unpruned
from stp_rs.train.priors import static_priors
from stp_rs.train.trainer import StepResult
from stp_rs.types import Mark
from tests.fixtures import trainer

CONFIG = TaskConfig(max_completion_length=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


class World:
    """A tiny Sudoku policy and a pruned rollout of it."""

    def __init__(self, **options: Any) -> None:
        self.config = TaskConfig(**{**CONFIG.to_flat(), **options})
        self.task = get_task("sudoku")
        self.tokenizer = character_tokenizer(self.task.alphabet)
        module = tiny_policy(self.config, vocab_size=len(self.tokenizer), max_length=40, seed=0)
        self.model = MaskedLMAdapter(module, self.tokenizer)
        prompts = encode_prompts(self.task.rows("train", 4, 0), self.tokenizer, uids=range(4)).repeat(4, step=0)
        priors = static_priors(self.config, self.task, self.tokenizer, self.model)
        self.rollout: Rollout = generate(
            self.model,
            prompts,
            make_unmasking(self.config),
            completion_length=20,
            sampling=sampling_law(self.config),
            prior=compose_priors(priors, prompts, 20),
        )

    def keeper(self, run: Path) -> Keeper:
        rewards = Rewards.of(list(self.task.reward_funcs), self.config)
        return Keeper(run, self.model, self.tokenizer, self.task, self.config, rewards)

    def result(self, step: int) -> StepResult:
        return StepResult(step, self.rollout, [], np.arange(16.0).tolist(), {})


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_scenes_are_the_trajectories(world: World, tmp_path: Path):
    world.keeper(tmp_path)(world.result(1))
    (path,) = kept_files(tmp_path)
    kept = read_scenes(path)
    assert kept["step"] == 1
    assert [scene["place"] for scene in kept["scenes"]] == ["best", "median", "worst"] * GROUPS
    rows = [row for _, row in shown_rows(world.rollout.group, world.result(1).rewards)]
    twin = unpruned(world.model, world.rollout, rows, world.config)
    for i, (scene, row) in enumerate(zip(kept["scenes"], rows, strict=True)):
        for name, rollout, at in (("pruned", world.rollout, row), ("unpruned", twin, i)):
            found = scene[name]
            assert found["steps"] == rollout.unmask_step[at].tolist()
            assert found["nfe"] == rollout.nfe[at]
            assert found["logprob"] == pytest.approx(rollout.logprob[at].tolist(), abs=1e-4)
            assert found["tokens"] == [world.tokenizer.decode([t]) for t in rollout.token_ids[at].tolist()]
        assert scene["prompt"] == world.rollout.prompts.rows[row]["prompt"]
        assert scene["unpruned"]["nfe"] == 20
        assert Mark.PRIOR in scene["pruned"]["steps"]
        assert Mark.PRIOR not in scene["unpruned"]["steps"]
        assert scene["pruned"]["tail"] == max(scene["pruned"]["steps"])
        assert scene["unpruned"]["tail"] is None


def test_rows_are_the_best_median_and_worst_of_groups():
    group = np.repeat([7, 3, 5, 9], 4)
    rewards = [0, 3, 1, 2, *[1.0] * 4, np.nan, 1, 2, 3, *[0] * 4]
    found = shown_rows(group, rewards)
    assert found[:3] == [("best", 1), ("median", 2), ("worst", 0)]
    assert found[3:6] == [("best", 4), ("median", 6), ("worst", 7)]
    assert found[6:] == [("best", 11), ("median", 9), ("worst", 8)]
    assert shown_rows(np.array([0, 0]), [1.0, 2.0]) == [("best", 1), ("median", 0), ("worst", 0)]


@pytest.mark.parametrize(
    ("every", "steps", "kept"), [(None, range(1, 8), []), (3, range(1, 8), [1, 3, 6, 7]), (5, (2, 4, 6, 7), [2, 6, 7])]
)
def test_every_nth_the_first_and_the_last_are_kept(every: int | None, steps: range, kept: list[int], tmp_path: Path):
    world = World(stp_keep_rollouts=every, stp_rollouts=7, num_iterations=1)
    keeper = world.keeper(tmp_path)
    for step in steps:
        keeper(world.result(step))
    assert [read_scenes(path)["step"] for path in kept_files(tmp_path)] == kept


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".unpruned.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"[1]", b"{}", None])
def test_a_broken_file_is_named(damage: bytes | None, suffix: str, world: World, tmp_path: Path):
    world.keeper(tmp_path)(world.result(1))
    (path,) = kept_files(tmp_path)
    broken = path.with_suffix(suffix)
    broken.write_bytes(broken.read_bytes()[:500] if damage is None else damage)
    with pytest.raises(CheckpointError, match=broken.name):
        read_scenes(path)


def test_a_trainer_of_rewards_of_ones_own_keeps_rollouts_that_nobody_calls_right_or_wrong(tmp_path: Path):
    made = trainer(tmp_path, stp_keep_rollouts=1)
    made.train()
    files = kept_files(tmp_path)
    assert len(files) == made.rollouts
    for scene in read_scenes(files[-1])["scenes"]:
        assert (scene["pruned"]["solved"], scene["unpruned"]["solved"]) == (None, None)
        assert 0 <= scene["pruned"]["reward"] <= 1
        assert (scene["unpruned"]["reward"], scene["unpruned"]["rewards"]) == (None, {})
    assert main(["watch", str(tmp_path), "--once"]) == 0
