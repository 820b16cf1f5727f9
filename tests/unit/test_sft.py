"""The warm-up learns its demonstrations; an evaluation is a greedy decode without temporal pruning."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import GREEDY, STPConfig, Template, Unmasking, decode_completions, encode_prompts, generate
from stp_rs.cli import run
from stp_rs.config import TaskConfig
from stp_rs.errors import DivergenceError, InvalidValueError
from stp_rs.eval.evaluate import evaluate
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.train.warmup import encode_completions, warm_up
from tests.fixtures import LENGTH, tiny, tokenizer

DEMONSTRATIONS = [{"prompt": p, "completion": c} for p, c in (("0", "[1]"), ("1", "[0]"), ("2", "[23]"))]


def warm(model: MaskedLMAdapter, **options: Any) -> list[float]:
    losses: list[float] = []
    settings: dict[str, Any] = {"steps": 60, "batch_size": 8, "learning_rate": 2e-2, "seed": 0}
    warm_up(
        model,
        tokenizer(),
        DEMONSTRATIONS,
        completion_length=LENGTH,
        on_step=lambda step, loss: losses.append(loss),
        **{**settings, **options},
    )
    return losses


class Echo:
    """A task whose answer is the demonstration."""

    def score(self, completions: list[str], rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        return {"solved": [float(c == r["completion"]) for c, r in zip(completions, rows, strict=True)]}


def test_completions_are_filled_up_with_end_of_text():
    ids = encode_completions(["[1]", "", "012301"], tokenizer(), LENGTH)
    assert ids.tolist() == [[8, 5, 9, 2, 2, 2], [2] * 6, [4, 5, 6, 7, 4, 5]]
    with pytest.raises(InvalidValueError, match="completion 1 has 7 tokens, the canvas 6; raise max_completion_length"):
        encode_completions(["0", "0123012"], tokenizer(), LENGTH)


def test_a_warmed_up_policy_gives_its_demonstrations_back():
    model = tiny(layers=2)
    config = STPConfig(max_completion_length=LENGTH, stp_temporal="steps:0.5")

    def score(**options: Any) -> dict[str, Any]:
        return evaluate(model, tokenizer(), Echo(), DEMONSTRATIONS, config, **options)

    before = score()
    greedy = generate(
        model,
        encode_prompts(DEMONSTRATIONS, tokenizer(), uids=range(3)),
        Unmasking(LENGTH),
        completion_length=LENGTH,
        sampling=GREEDY,
    )
    assert before["completions"] == decode_completions(greedy.token_ids, np.full(3, LENGTH), tokenizer())
    losses = warm(model, steps=150)
    after = score()
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 3
    assert before["solved"] < after["solved"] == 1.0
    assert after["completions"] == [row["completion"] for row in DEMONSTRATIONS]
    assert after["nfe"] == LENGTH, "the reported number is the plain sampler's"
    pruned = score(priors=[Template({0: "["}, tokenizer())])
    assert pruned["nfe"] == LENGTH - 1
    assert pruned["solved"] == 1.0


def test_a_warm_up_is_its_seed_and_touches_no_generator():
    before = torch.get_rng_state(), random.getstate()
    first, again, other = warm(tiny()), warm(tiny()), warm(tiny(), seed=1)
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_learning_rate_stays_for_half_the_steps_and_falls_to_nothing(monkeypatch: pytest.MonkeyPatch):
    rates = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    warm(tiny(), steps=8, learning_rate=0.5)
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125])


def test_a_warm_up_runs_without_dropout_and_leaves_the_mode():
    dropping = tiny(dropout=0.5)
    assert warm(dropping, steps=5) == pytest.approx(warm(tiny(), steps=5), abs=1e-4)
    assert dropping.module.training


def test_the_first_loss_is_the_elbo_of_the_whole_completion():
    """Untrained and uniform: minus log(1 / allowed tokens) per position, whatever the masks."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()
    losses = [loss for seed in range(40) for loss in warm(model, steps=1, learning_rate=0.0, seed=seed)]
    assert np.mean(losses) == pytest.approx(np.log(9), abs=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_warm_up_computes_in_the_type_of_the_run(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """bf16 holds for the passes of the warm-up too, and the weights stay in fp32."""
    seen: set[torch.dtype] = set()
    made = run.tiny_policy

    def watched(*args: Any, **options: Any) -> torch.nn.Module:
        module = made(*args, **options)
        for part in module.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_hook(lambda _part, _inputs, output: seen.add(output.dtype))
        return module

    monkeypatch.setattr(run, "tiny_policy", watched)
    config = TaskConfig(task="sudoku", output_dir=str(tmp_path), sft_steps=2, train_size=8, bf16=bf16)
    task = run.make_task(config)
    model, _ = run.prepare_policy(run.complete(config, task), task, tmp_path)
    assert (torch.bfloat16 in seen) == bf16
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    other = TaskConfig(task="sudoku", output_dir=str(tmp_path), sft_steps=2, train_size=8, bf16=not bf16)
    assert run.warm_up_identity(other) != run.warm_up_identity(config), "none is shared by runs of both types"


def test_what_cannot_be_learned_says_why():
    with pytest.raises(InvalidValueError, match="demonstrations: got none"):
        warm_up(
            tiny(), tokenizer(), [], completion_length=3, steps=1, batch_size=1, learning_rate=1.0
        )  # fmt: skip
    broken = tiny()
    with torch.no_grad():
        next(broken.module.parameters())[4:] = float("nan")
    with pytest.raises(DivergenceError, match=r"SFT step 0: the loss is nan; lower sft_learning_rate"):
        warm(broken)
