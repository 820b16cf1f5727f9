"""Guards and alarms, each by its fault: a NaN stops the step before the update; alarms warn, stop, roll back."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs.errors import DivergenceError, RewardValueError
from stp_rs.train.alarms import Alarms, best_and_last, score_line
from stp_rs.train.callbacks import RolloutCallback
from stp_rs.train.checkpoint import newest_checkpoint
from stp_rs.train.metrics import read_metrics
from stp_rs.train.report.facts import collect
from stp_rs.train.trainer import STPTrainer
from tests.fixtures import LENGTH, ROWS, ones, tiny, trainer

SAVED = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 1, "logging_steps": 1}


def weights(made: STPTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- numbers that are not finite ---


def spoil_logits(made: STPTrainer, value: float, when: Callable[[], bool]) -> None:
    """Let the policy return a value that is no number for one position of one row."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if when():
            output = output.clone()
            output.view(-1)[0] = value
        return output

    head = made.model.get_output_embeddings()
    head.register_forward_hook(hook)


def spoil_gradient(made: STPTrainer, value: float, when: Callable[[], bool]) -> None:
    parameter = next(p for p in made.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient.clone().fill_(value) if when() else gradient)


def spoil_weights(made: STPTrainer, value: float, when: Callable[[], bool]) -> None:
    """Let the optimiser write what is no number."""

    def hook(*_: Any) -> None:
        if when():
            with torch.no_grad():
                next(made.model.parameters()).view(-1)[0] = value

    made.optimizer.register_step_post_hook(hook)


FAULTS = {"logits": spoil_logits, "gradient": spoil_gradient, "weights": spoil_weights}


@pytest.mark.parametrize(
    ("fault", "value"),
    [(fault, value) for fault in FAULTS for value in (math.nan, math.inf)]
    + [("gradient", -math.inf), ("gradient", 1e25)],
)
def test_what_is_not_finite_stops_the_run_before_an_update_and_is_told(fault: str, value: float, tmp_path: Path):
    made = trainer(tmp_path, **SAVED, stp_rollouts=4)
    made.train_step()
    before = weights(made)
    FAULTS[fault](made, value, lambda: True)
    phase = {"logits": "rollout", "gradient": "update", "weights": "rollout"}[fault]
    if fault == "weights":
        made.train_step()
    with pytest.raises(DivergenceError, match=rf"step [12], {phase}: ") as told:
        made.train_step()
    if fault != "weights":
        assert made.state.global_step == 1
        assert same(weights(made), before), "no update was made of it"
    (path,) = (tmp_path / "divergence").iterdir()
    dump = json.loads(path.read_text())
    assert str(path) in str(told.value)
    assert path.stat().st_size < 20_000
    assert dump["phase"] == phase
    if phase == "rollout":
        assert dump["prompt"] in {row["prompt"] for row in ROWS}
        assert repr(dump["prompt"]) in str(told.value)
        assert isinstance(dump["row"], int)
    name = next(name for name, _ in made.model.named_parameters())
    if fault == "gradient":
        assert dump["gradients_of"] == ([name] if not math.isfinite(value) else [])
    if fault == "weights":
        assert dump["weights"] == [name]
        assert name in str(told.value)


@pytest.mark.parametrize(
    ("value", "weight"), [(math.nan, 1.0), (-math.inf, 1.0), ("high", 1.0), (1e30, 1.0), (1e25, 1e9)]
)
def test_a_reward_that_is_no_number_stops_the_run_before_an_update_and_is_told(
    value: Any, weight: float, tmp_path: Path
):
    calls: list[list[str]] = []

    def judged(completions: list[str], prompts: list[str], **_: Any) -> list[Any]:
        calls.append(prompts)
        return [value if len(calls) == 2 and row == 5 else 0.0 for row in range(len(completions))]

    made = trainer(tmp_path, reward=judged, **SAVED, stp_rollouts=4, reward_weights=[weight])
    made.train_step()
    before = weights(made)
    with pytest.raises(RewardValueError, match=r"step 1, reward: rewards? judged: .* for completion '") as told:
        made.train_step()
    assert made.state.global_step == 1
    assert same(weights(made), before), "no update was made of it"
    (path,) = (tmp_path / "divergence").iterdir()
    dump = json.loads(path.read_text())
    assert (dump["step"], dump["phase"], dump["reward"], dump["row"]) == (1, "reward", "judged", 5)
    assert dump["prompt"] == calls[1][5]
    assert f"(row 5, prompt {dump['prompt']!r})" in str(told.value)
    assert repr(dump["completion"]) in str(told.value)
    assert str(path) in str(told.value)


def test_a_loss_that_is_not_finite_names_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = trainer(tmp_path, preset="stp_spread", num_iterations=1)
    made.train_step()
    before, original = weights(made), made.update.estimator.estimates

    def spoiled(model: Any, parts: Any, entropies: Any = "none") -> Any:
        found = original(model, parts, entropies)
        found[0].token_RL.data[1, 2] = math.nan
        return found

    monkeypatch.setattr(made.update.estimator, "estimates", spoiled)
    with pytest.raises(DivergenceError, match=r"loss nan, .* \(a row whose estimate is not finite: prompt '") as told:
        made.train_step()
    assert same(weights(made), before)
    details = told.value.details
    assert details["row"] == 1
    assert details["completion"] is not None
    assert details["prompt"] in {row["prompt"] for row in ROWS}


@pytest.mark.parametrize("where", ["weights", "moments"])
def test_no_checkpoint_is_made_of_what_is_not_finite(where: str, tmp_path: Path):
    made = trainer(tmp_path, **SAVED)
    made.train_step()
    made.save()
    first = next(iter(made.model.parameters()))
    spoiled = first if where == "weights" else made.optimizer.state[first]["exp_avg_sq"]
    with torch.no_grad():
        spoiled.view(-1)[0] = math.inf
    made.state.global_step = 2
    with pytest.raises(DivergenceError, match="holds a NaN or infinity"):
        made.save()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_the_last_update_is_watched_too(tmp_path: Path):
    made = trainer(tmp_path, num_iterations=1, stp_rollouts=2)
    spoil_weights(made, math.nan, lambda: made.state.global_step == 1)
    with pytest.raises(DivergenceError, match=r"step 2: .* holds a NaN"):
        made.train()


# --- alarms ---


class Heard(RolloutCallback):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_alarm(self, args: Any, state: Any, control: Any, message: str) -> None:
        self.messages.append(message)


def alarms(**options: Any) -> Alarms:
    return Alarms(trainer(Path("nowhere"), **options).args)


CASES = {
    # alarm -> (metric, its bound, a right value, a wrong one)
    "ratio": ("diffusion/ratio_max", 10.0, 2.0, 50.0),
    "kl": ("kl", 1.0, 0.5, 1.0),
    "entropy": ("entropy", 0.1, 0.5, 0.01),
    "distinct": ("diffusion/distinct", 1.5, 4.0, 1.0),
    "ended": ("completions/clipped_ratio", 0.25, 0.5, 0.9),
    "equal": ("frac_reward_zero_std", 1.0, 0.9, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_an_alarm_goes_off_after_its_patience_once_until_it_is_right_again(name: str):
    metric, bound, right, wrong = CASES[name]
    watched = alarms(**{f"stp_alarm_{name}": bound, "stp_alarm_patience": 2})
    readings = [right, wrong, right, wrong, wrong, wrong, math.nan, right, wrong, math.inf if wrong > bound else wrong]
    fired = [[alarm.name for alarm in watched.batch({metric: value}, i)] for i, value in enumerate(readings)]
    assert [i for i, names in enumerate(fired) if names == [name]] == [4, 9]
    assert sum(map(len, fired)) == 2
    assert watched.fine[name] == 7
    again = alarms(**{f"stp_alarm_{name}": bound, "stp_alarm_patience": 2})
    again.restore(json.loads(json.dumps(watched.to_dict())))
    assert again.to_dict() == watched.to_dict()
    assert not alarms(**{f"stp_alarm_{name}": None, "stp_alarm_patience": 1}).batch({metric: wrong}, 1)


def test_a_score_below_a_share_of_its_best_is_a_collapse():
    watched = alarms()
    scores = [0.1, 0.9, 0.5, 0.031, 0.02, 0.6, 0.1]
    fired = [bool(watched.evaluation({"eval_solved": score, "eval_reward": 1.0}, i)) for i, score in enumerate(scores)]
    assert fired == [False, False, False, True, False, False, True]
    assert watched.fine["collapse"] == 5
    assert not any(alarms().evaluation({"eval_reward": score}, 1) for score in (-1.0, -5.0, 0.0))
    assert not alarms().evaluation({}, 1)


def collapsing(run: Path, **options: Any) -> STPTrainer:
    """Return a trainer whose held-out score collapses at the third evaluation, once."""
    made = trainer(run, **{**SAVED, "eval_strategy": "steps", "eval_steps": 1, "stp_rollouts": 6, **options})
    made.eval_dataset = ROWS[:2]
    loop, calls = made.evaluation_loop, [0]

    def scored(*args: Any, **kwargs: Any) -> Any:
        found = loop(*args, **kwargs)
        calls[0] += 1
        found.metrics["eval_reward"] = 0.01 if calls[0] == 3 else 0.9
        return found

    made.evaluation_loop = scored  # type: ignore[method-assign] # scores that are told
    return made


def test_a_warning_is_in_metrics_log_report_and_state_and_changes_no_number(tmp_path: Path):
    made, heard = collapsing(tmp_path / "a"), Heard()
    made.add_callback(heard)
    made.train()
    plain = trainer(tmp_path / "b", **{**SAVED, "stp_rollouts": 6, "stp_alarm_collapse": None})
    plain.train()
    assert same(weights(made), weights(plain))
    assert len(heard.messages) == 1
    assert heard.messages[0].startswith("alarm collapse at step 3: the score of the evaluation is 0.010, below 0.5")
    lines = {line["step"]: line for line in read_metrics(tmp_path / "a" / "metrics.jsonl")}
    assert [step for step in lines if "alarm/collapse" in lines[step]] == [3]
    assert [alarm["alarm"] for alarm in made.alarms.history] == ["collapse"]
    assert "collapse (1)" in json.dumps(collect(tmp_path / "a"))
    best = best_and_last(made.state.log_history)
    assert best is not None
    assert (best["best"], best["last"], best["last_step"]) == (0.9, 0.9, 6)
    assert "last 0.900 at step 6; alarms: collapse (1)" in score_line(best, ["collapse"])


def test_stop_ends_the_run_with_what_is_good(tmp_path: Path):
    made = collapsing(tmp_path, stp_on_alarm="stop")
    with pytest.raises(DivergenceError, match=r"alarm collapse at step 3: .* checkpoints up to step 2 are good"):
        made.train()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 2, "the step of the alarm is not saved"


def test_rollback_restores_the_last_good_checkpoint_and_halves_the_rate(tmp_path: Path):
    made = collapsing(tmp_path / "a", stp_on_alarm="rollback")
    steps: list[tuple[int, float]] = []

    class Steps(RolloutCallback):
        def on_rollout_end(self, args: Any, state: Any, control: Any, result: Any) -> None:
            steps.append((result.step, result.metrics["learning_rate"]))

    made.add_callback(Steps())
    made.train()
    rate = made.args.learning_rate
    assert steps == [(1, rate), (2, rate), (3, rate), *((step, rate / 2) for step in (3, 4, 5, 6))]
    lines = {line["step"]: line for line in read_metrics(tmp_path / "a" / "metrics.jsonl")}
    assert list(lines) == [1, 2, 3, 4, 5, 6]
    assert (lines[2]["alarm/rollback"], lines[2]["alarm/collapse"], lines[2]["rolled_back_from"]) == (1, 1, 3)
    assert made.alarms.history[0]["rolled_back_to"] == 2
    assert made.ledger.completions == 7 * 8, "what was rolled back was computed too"
    assert json.loads((tmp_path / "a" / "checkpoint-6" / "stp_state.json").read_text())["alarms"]["rollbacks"] == 1


def test_a_run_killed_after_a_rollback_goes_on_as_if_it_had_not_been(tmp_path: Path):
    whole = collapsing(tmp_path / "whole", stp_on_alarm="rollback", lr_scheduler_type="cosine", warmup_steps=2)
    whole.train()
    cut = collapsing(tmp_path / "cut", stp_on_alarm="rollback", lr_scheduler_type="cosine", warmup_steps=2)

    class Kill(RolloutCallback):
        def on_rollout_end(self, args: Any, state: Any, control: Any, result: Any) -> None:
            if cut.alarms.rollbacks:
                raise KeyboardInterrupt

    cut.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = trainer(
        tmp_path / "cut",
        **{
            **SAVED,
            **{"stp_rollouts": 6, "stp_on_alarm": "rollback", "lr_scheduler_type": "cosine", "warmup_steps": 2},
        },
    )
    again.train(resume_from_checkpoint=True)
    assert again.alarms.rollbacks == 1
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("fault", FAULTS)
def test_rollback_answers_a_nan_too(fault: str, tmp_path: Path):
    made = trainer(tmp_path, **{**SAVED, "save_steps": 2, "stp_rollouts": 6, "stp_on_alarm": "rollback"})
    FAULTS[fault](made, math.nan, lambda: made.state.global_step == 3 and not made.alarms.rollbacks)
    made.train()
    assert made.state.global_step == 6
    assert [(alarm["alarm"], alarm["rolled_back_to"]) for alarm in made.alarms.history] == [("nan", 2)]
    assert made._rate == made.args.learning_rate / 2
    assert all(torch.isfinite(p).all() for p in weights(made))


def test_a_fault_before_the_first_save_is_rolled_back_to_the_start(tmp_path: Path):
    made = trainer(tmp_path, **{**SAVED, "save_steps": 100, "stp_rollouts": 3, "stp_on_alarm": "rollback"})
    spoil_gradient(made, math.nan, lambda: made.state.global_step == 1 and not made.alarms.rollbacks)
    made.train()
    assert made.alarms.history[0]["rolled_back_to"] == 0
    assert made.state.global_step == 3


def test_rolling_back_ends(tmp_path: Path):
    made = trainer(tmp_path, **{**SAVED, "stp_rollouts": 3, "stp_on_alarm": "rollback"})
    spoil_gradient(made, math.nan, lambda: made.state.global_step == 1)
    with pytest.raises(DivergenceError, match=r"the run is stopped: it was rolled back 8 times"):
        made.train()
    assert len(made.alarms.history) == 9


def test_alarms_are_of_one_run_only_where_they_change_it():
    plain = trainer(Path("nowhere")).args.identity("numbers")
    assert not [name for name in plain if "alarm" in name]
    rolling = trainer(Path("nowhere"), stp_on_alarm="rollback").args.identity("numbers")
    assert {name for name in rolling if "alarm" in name} >= {"stp_on_alarm", "stp_alarm_kl", "stp_alarm_patience"}


def test_a_reward_that_collapses_is_in_the_closing_lines():
    lines = [{"step": 1, "reward": 0.2}, {"step": 2, "reward": 0.9}, {"step": 3, "reward": 0.031}]
    assert score_line(best_and_last(lines), []) == "reward: best 0.900 at step 2, last 0.031 at step 3; alarms: none"
    assert score_line(best_and_last([]), ["kl", "kl"]) == "alarms: kl (2)"
    assert ones(["1" * LENGTH]) == [1.0]
    assert tiny().module is not None
