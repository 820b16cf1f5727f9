"""Evaluation: pass@k, intervals, ways of decoding, and reports that can be continued."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs.config import PolicyConfig, STPConfig
from stp_rs.errors import CheckpointError, ConfigError, ModelError
from stp_rs.eval import evaluate as evaluation
from stp_rs.eval.evaluate import Decode, bootstrap_interval, evaluate, evaluate_cells, interval, pass_at_k
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.priors import Template, Vocabulary
from stp_rs.tasks import get_task


@pytest.fixture(scope="module")
def setup():
    task = get_task("sudoku")
    tokenizer = character_tokenizer(task.alphabet + "\n>")
    policy = PolicyConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = as_diffusion_model(tiny_policy(policy, vocab_size=len(tokenizer), max_length=90, seed=0), tokenizer)
    config = STPConfig(max_completion_length=20)
    return model, tokenizer, task, task.rows("test", 3, 0), config


@pytest.mark.parametrize(("n", "right", "k"), [(4, 0, 1), (4, 1, 2), (5, 2, 3), (6, 6, 2), (3, 3, 3), (6, 4, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, right: int, k: int):
    flags = [i < right for i in range(n)]
    subsets = list(itertools.combinations(flags, k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_an_interval_holds_the_mean_and_narrows_with_more_problems():
    rng = np.random.default_rng(0)
    few, many = (rng.integers(0, 2, n).astype(float) for n in (20, 2000))
    for values in (few, many):
        low, high = bootstrap_interval(values)
        assert low <= values.mean() <= high
    assert np.diff(bootstrap_interval(many)) < np.diff(bootstrap_interval(few)) / 5
    assert bootstrap_interval(np.ones(5)) == [1.0, 1.0]


def test_steps_set_the_forwards_and_priors_lower_them(setup):
    model, tokenizer, task, rows, config = setup
    for steps in (5, 20):
        free = evaluate(model, tokenizer, task, rows, config, decode=Decode(20, steps))
        assert free["nfe"] == steps
    prior = evaluate(model, tokenizer, task, rows, config, priors=[Template(task.template, tokenizer)])
    assert prior["nfe"] == 16
    assert all(text[0] == "[" for text in prior["completions"])


@pytest.mark.parametrize("bf16", [False, True])
def test_a_bf16_run_is_read_in_bf16(setup, bf16: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model, tokenizer, task, rows, _ = setup
    config = STPConfig(max_completion_length=20, bf16=bf16, use_cpu=True, output_dir=str(tmp_path))
    seen, hidden = set(), model.hidden

    def watched(*given: Any) -> Any:
        seen.add(torch.is_autocast_enabled("cpu"))
        return hidden(*given)

    monkeypatch.setattr(model, "hidden", watched)
    evaluate(model, tokenizer, task, rows, config)
    assert seen == {bf16}


def test_conversations_see_the_arguments_of_the_template(setup, monkeypatch: pytest.MonkeyPatch):
    model, tokenizer, task, rows, _ = setup
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0].content }}{{ ending }}")
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    seen, real = [], evaluation.generate
    monkeypatch.setattr(evaluation, "generate", lambda m, p, *a, **k: (seen.append(p), real(m, p, *a, **k))[1])
    for options in (None, {"ending": "12"}):
        evaluate(model, tokenizer, task, asked, STPConfig(max_completion_length=20, chat_template_kwargs=options))
    assert [prompts.prompt_length.tolist() for prompts in seen] == [[16] * 3, [18] * 3]


def test_a_vocabulary_holds_at_evaluation(setup):
    model, tokenizer, task, rows, config = setup
    digits = Vocabulary(lambda _: ["1", "2"], tokenizer)
    free, held = (evaluate(model, tokenizer, task, rows, config, priors=p)["completions"] for p in ([], [digits]))
    assert all(set(text) <= {"1", "2"} and len(text) == 20 for text in held)
    assert not all(set(text) <= {"1", "2"} for text in free)


def test_the_default_is_the_runs_own_greedy_decode(setup):
    model, tokenizer, task, rows, config = setup
    own = evaluate(model, tokenizer, task, rows, config)
    assert own == evaluate(model, tokenizer, task, rows, config, decode=Decode(20, 20))


def test_samples_differ_and_are_refused_at_temperature_zero(setup):
    model, tokenizer, task, rows, config = setup
    result = evaluate(model, tokenizer, task, rows, config, decode=Decode(20, 5, temperature=1.0, samples=4))
    assert [f"pass@{k}" in result for k in (1, 2, 3, 4)] == [True, True, False, True]
    assert result["pass@1"] == pytest.approx(result["solved"])
    assert len(result["completions"]) == len(rows)
    with pytest.raises(ConfigError, match="samples: got 2 at temperature 0"):
        evaluate(model, tokenizer, task, rows, config, decode=Decode(20, 5, samples=2))


def test_few_shot_and_prefill_surround_the_prompt(setup, monkeypatch: pytest.MonkeyPatch):
    model, tokenizer, task, rows, config = setup
    seen = []
    encode = evaluation.encode_prompts
    monkeypatch.setattr(evaluation, "encode_prompts", lambda r, *a, **k: (seen.extend(r), encode(r, *a, **k))[1])
    result = evaluate(model, tokenizer, task, rows[:1], config, decode=Decode(20, 2, few_shot=1, prefill=">"))
    example = task.demonstrations(1, 0)[0]
    assert seen[0]["prompt"] == f"{example['prompt']}{example['completion']}\n{rows[0]['prompt']}>"
    assert result["completions"][0].startswith(">")


def test_a_canvas_that_does_not_fit_the_model_is_refused(setup):
    model, tokenizer, task, rows, config = setup
    found = "116 tokens does not fit the model's 90 positions.*the longest prompt has 16 tokens: '[0-9]{16}'"
    with pytest.raises(ModelError, match=found):
        evaluate(model, tokenizer, task, rows, config, decode=Decode(100, 50))


def test_a_report_is_continued_for_the_same_policy_and_problems_only(
    setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, tokenizer, task, rows, config = setup
    calls = []
    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    cells = [("free", [], Decode(20, steps)) for steps in (2, 4, 5)]
    path = tmp_path / "report.json"
    interrupted = evaluate_cells(model, tokenizer, task, rows, config, cells, path)
    first = [next(interrupted), next(interrupted)]
    interrupted.close()
    assert [cell["steps"] for cell in json.loads(path.read_text())["cells"]] == [2, 4]
    whole = list(evaluate_cells(model, tokenizer, task, rows, config, cells, path))
    assert (len(calls), whole[:2]) == (3, first)
    assert whole == list(evaluate_cells(model, tokenizer, task, rows, config, cells))
    list(evaluate_cells(model, tokenizer, task, rows[:2], config, cells[:1], path))
    assert len(calls) == 3 + 3 + 1
    for foreign in ("{cut", "[1, 2]", '{"mine": [1]}'):
        path.write_text(foreign)
        with pytest.raises(CheckpointError, match="is no table of an evaluation"):
            next(evaluate_cells(model, tokenizer, task, rows, config, cells[:1], path))
        assert path.read_text() == foreign


def test_none_or_all_solved_is_not_known_exactly():
    assert interval(np.zeros(8)) == pytest.approx([0.0, 0.3244], abs=1e-4)  # Wilson's: z^2 / (n + z^2)
    assert interval(np.ones(8)) == pytest.approx([0.6756, 1.0], abs=1e-4)
    assert interval(np.ones(800))[0] > 0.99
    some = np.array([1.0, 0.0, 1.0, 1.0])
    assert interval(some) == bootstrap_interval(some)
