"""Rewards: what functions are given, what they may return, and what becomes of the completions that nobody judges."""

import asyncio
import functools
import logging
import math
import os
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from stp_rs.errors import ConfigError, InvalidValueError, RewardError
from stp_rs.objective.advantages import decoupled_advantages, group_advantages, reward_metrics
from stp_rs.rollout.rewards import LARGEST, RESERVED, Rewards, column_names, score_rewards
from tests.fixtures import ROWS, trainer

TABLE = [{"prompt": "01", "answer": "10"}, {"prompt": "2", "answer": "2", "extra": 3}]
TWO = ["a", "b"]


def ones(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


# --- what a function is given ---


def test_rewards_get_the_columns_and_are_added_up():
    def answer(completions: Any, prompts: Any, completion_ids: Any, answer: Any, **columns: Any) -> Any:
        assert {k: v for k, v in columns.items() if k not in RESERVED} == {"extra": [None, 3]}
        assert prompts == ["01", "2"]
        assert completion_ids == [[1], [2]]
        return [None if c == "?" else float(c == a) for c, a in zip(completions, answer, strict=True)]

    total, by_name = score_rewards([answer, ones], ["10", "?"], TABLE, [[1], [2]])
    assert total.tolist() == [2.0, 1.0]
    assert by_name["ones"].tolist() == [1.0, 1.0]
    assert by_name["answer"][0] == 1.0
    assert np.isnan(by_name["answer"][1])


def test_a_function_is_given_what_it_names_and_nothing_else():
    seen: dict[str, Any] = {}

    def narrow(completions: list[str], *, answer: list[str], trainer_state: Any, other: int = 7) -> list[float]:
        seen.update(answer=answer, state=trainer_state, other=other)
        return [0.5, 0.5]

    class Judge:
        def __call__(self, completion_ids: list[list[int]]) -> list[float]:
            return [float(len(ids)) for ids in completion_ids]

        def method(self, prompts: list[str], weight: float = 2.0) -> list[float]:
            return [weight * len(prompt) for prompt in prompts]

    judge = Judge()
    functions = [narrow, judge, judge.method, functools.partial(judge.method, weight=3.0)]
    scores = Rewards(functions).score(TWO, TABLE, [[1, 2], [3]], trainer_state="state")
    assert seen == {"answer": ["10", "2"], "state": "state", "other": 7}
    assert {name: values.tolist() for name, values in scores.by_name.items()} == {
        "narrow": [0.5, 0.5],
        "Judge": [2.0, 1.0],
        "method": [4.0, 2.0],
        "method_2": [6.0, 3.0],
    }


def test_a_chat_prompt_has_a_chat_shaped_completion():
    rows = [{"prompt": [{"role": "user", "content": "hi"}]}, {"prompt": "plain"}]

    def content(completions: list[Any]) -> list[float]:
        assert completions == [[{"role": "assistant", "content": "a"}], "b"]
        return [1.0, 0.0]

    assert score_rewards(content, TWO, rows)[0].tolist() == [1.0, 0.0]


def test_what_a_function_changes_nobody_else_sees():
    """Neither the next function, nor the other completions of the prompt, nor the dataset, nor the ids."""
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "answer": [3, 1, 2],
        "tests": {"in": [1]},
        "lock": threading.Lock(),
    }
    rows = [row, row]
    ids = [[1, 2], [3]]
    seen = []

    def vandal(completions: Any, prompts: Any, answer: Any, tests: Any, completion_ids: Any, lock: Any) -> list[float]:
        seen.append(
            (completions[0][0]["content"], prompts[0][0]["content"], answer[:], tests[1]["in"][:], completion_ids)
        )
        assert lock[0] is row["lock"], "what cannot be copied is handed over"
        for one in answer:
            assert one == [3, 1, 2], "a row of its own for each completion"
            one.sort()
        answer.clear()
        tests[0]["in"].append(2)
        prompts[0][0]["content"] = completions[0][0]["content"] = "gone"
        completions.clear()
        completion_ids[0].append(9)
        return [1.0, 1.0]

    Rewards([vandal, vandal]).score(TWO, rows, ids)
    assert seen[0][:2] == seen[1][:2] == ("a", "q")
    assert row["answer"] == [3, 1, 2]
    assert row["tests"] == {"in": [1]}
    assert ids == [[1, 2], [3]]


def test_two_rewards_of_one_name_both_count():
    lambdas = [lambda completions, **_: [0.25] * len(completions), lambda completions, **_: [0.5] * len(completions)]
    total, by_name = score_rewards(lambdas, ["a"], [{"prompt": "p"}])
    assert total.tolist() == [0.75]
    assert len(by_name) == 2


@pytest.mark.parametrize("column", RESERVED)
def test_columns_that_have_the_name_of_an_argument_are_refused_at_the_start(column: str, tmp_path: Path):
    with pytest.raises(InvalidValueError, match=f"column {column}: is what reward functions are given by that name"):
        trainer(tmp_path, rows=[*ROWS, {"prompt": "1", column: 3}])


def test_a_column_that_a_function_needs_is_missed_at_the_start(tmp_path: Path):
    def needy(completions: list[str], solution: list[str]) -> list[float]:
        return [1.0]

    with pytest.raises(InvalidValueError, match="reward needy: needs solution, and the rows have no columns"):
        trainer(tmp_path, reward=needy)
    with pytest.raises(InvalidValueError, match="reward needy: needs solution, and the rows have answer, extra"):
        score_rewards(needy, TWO, TABLE)

    def nameless(completions: list[str], /) -> list[float]:
        return [1.0]

    with pytest.raises(InvalidValueError, match="reward nameless: has parameters without a name"):
        score_rewards(nameless, TWO, TABLE)


def test_columns_are_those_of_every_row_or_of_the_dataset():
    class Dataset:
        column_names = ("prompt", "a")

    assert column_names(TABLE) == {"prompt", "answer", "extra"}
    assert column_names(Dataset()) == {"prompt", "a"}


# --- what a function may return ---


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 0.0],
        (1, 0),
        [True, False],
        np.array([1.0, 0.0]),
        np.array([True, False]),
        np.array([1, 0], np.int8),
        [np.float64(1), np.bool_(False)],
        [np.array(1.0), torch.tensor(0)],
        torch.tensor([1.0, 0.0], requires_grad=True),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
        [Fraction(1), Decimal(0)],
        iter([1.0, 0.0]),
        range(1, -1, -1),
    ],
    ids=lambda v: type(v).__name__,
)
def test_numbers_of_every_kind_are_rewards(values: Any):
    def kind(completions: list[str]) -> Any:
        return values

    assert score_rewards(kind, TWO, TABLE)[0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "got 1 values for 2 completions"),
        ([1.0] * 3, "got 3 values for 2 completions"),
        (iter([1.0] * 5), "got more than 2 values for 2 completions"),
        ([1.0, float("nan")], "got nan for completion 'b', needs a finite number"),
        (np.array([math.nan, 0.0]), "got nan for completion 'a'"),
        ([float("inf"), None], "got inf for completion 'a'"),
        ([None, -math.inf], "got -inf for completion 'b'"),
        ([1e300, 0], "got 1e[+]300 for completion 'a'"),
        ([3e38, 0], "got 3e[+]38 for completion 'a'"),
        ([10**400, 0], "for completion 'a', needs a finite number"),
        (["1", "0"], "got '1' for completion 'a'"),
        ([[1.0], [0.0]], r"got \[1.0\] for completion 'a'"),
        ([np.ones(1), 0], "for completion 'a', needs a finite number"),
        ([1j, 0], "got 1j for completion 'a'"),
        (1.0, "got float 1.0, needs a list with one number"),
        (True, "got bool True, needs a list"),
        (None, "got NoneType None, needs a list"),
        (np.float32(1.0), r"got float32 of shape \(\), needs a list"),
        (torch.tensor(1.0), r"got Tensor of shape \(\), needs a list"),
        (np.ones((2, 1)), r"got ndarray of shape \(2, 1\), needs a list"),
        (torch.ones(2, 2), r"got Tensor of shape \(2, 2\)"),
        (np.ones(3), "got 3 values for 2 completions"),
        ({0: 1.0, 1: 0.0}, "got dict .*, needs a list"),
        ({"a": 1.0, "b": 0.0}.items(), "got dict_items .*, needs a list"),
        ({1.0, 0.0}, "got set .*, needs a list"),
        (frozenset([1.0, 0.0]), "got frozenset"),
        ("10", "got str '10', needs a list"),
        (b"10", "got bytes b'10', needs a list"),
        (object(), "got object .*, needs a list"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else "",
)
def test_a_broken_reward_is_named(values: Any, message: str):
    def broken(completions: list[str]) -> Any:
        return values

    with pytest.raises(InvalidValueError, match=f"reward broken: .*{message}"):
        score_rewards([ones, broken], TWO, TABLE)


def test_a_sum_that_leaves_the_range_is_refused():
    def large(completions: list[str]) -> list[float]:
        return [0.0, 0.9 * LARGEST]

    assert np.isfinite(score_rewards(large, TWO, TABLE)[0]).all()
    with pytest.raises(InvalidValueError, match=r"rewards large, large_2: their weighted sum is 1.8e\+30 for"):
        score_rewards([large, large], TWO, TABLE)
    with pytest.raises(InvalidValueError, match="lower reward_weights"):
        Rewards([large], weights=[-2.0]).score(TWO, TABLE)


@pytest.mark.parametrize("given", [None, [], [None], [3], [[ones]]])
def test_what_is_no_reward_is_refused(given: Any):
    with pytest.raises(ConfigError, match="reward_funcs: got"):
        Rewards(given)


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, 2.0, 3.0], [[1.0], [2.0]]])
def test_weights_are_one_per_reward(weights: Any):
    with pytest.raises(ConfigError, match=r"reward_weights: got .* needs 2 finite numbers"):
        Rewards([ones, ones], weights=weights)


def test_weights_count_in_the_sum_and_not_in_what_is_logged_by_name():
    def half(completions: list[str]) -> list[float | None]:
        return [0.5, None]

    scores = Rewards([ones, half], weights=[2.0, -1.0]).score(TWO, TABLE)
    assert scores.total.tolist() == [1.5, 2.0]
    assert scores.by_name["half"][0] == 0.5


# --- coroutines ---


def test_coroutines_wait_for_each_other_and_not_one_after_the_other():
    meeting: dict[str, Any] = {}

    async def first(completions: list[str]) -> list[float]:
        meeting["gate"] = asyncio.Event()
        await asyncio.wait_for(meeting["gate"].wait(), 30)  # `second` opens it: one after the other would never end
        return [1.0, 1.0]

    async def second(completions: list[str], **_: Any) -> list[float | None]:
        meeting["loop"] = asyncio.get_running_loop()
        while "gate" not in meeting:
            await asyncio.sleep(0)
        meeting["gate"].set()
        return [2.0, None]

    class Third:
        async def __call__(self, completions: list[str]) -> list[float]:
            return [4.0, 4.0]

    functions = [first, functools.partial(second), Third(), lambda completions: Third()(completions[:]), ones]
    total, by_name = score_rewards(functions, TWO, TABLE)
    assert total.tolist() == [12.0, 10.0]
    assert list(by_name) == ["first", "second", "Third", "<lambda>", "ones"]
    loop = meeting["loop"]
    score_rewards([first, second], TWO, TABLE)
    assert meeting["loop"] is loop, "a client that belongs to a loop is good for the next batch"


def test_coroutines_run_where_a_loop_is_running():
    async def judge(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0, 0.0]

    async def notebook() -> Any:
        return score_rewards(judge, TWO, TABLE)[0].tolist()

    assert asyncio.run(notebook()) == [1.0, 0.0]


def test_coroutines_run_in_a_forked_process():
    async def judge(completions: list[str]) -> list[float]:
        return [1.0, 0.0]

    score_rewards(judge, TWO, TABLE)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"1" if score_rewards(judge, TWO, TABLE)[0][0] == 1.0 else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.close(write)


def test_errors_of_rewards_are_the_causes_of_ours():
    async def waits(completions: list[str]) -> list[float]:
        return [1.0, 1.0]

    def fails(completions: list[str]) -> list[float]:
        raise KeyError("mine")

    async def fails_later(completions: list[str]) -> list[float]:
        raise LookupError("later")

    # and no warning about a coroutine that was never awaited
    with pytest.raises(
        RewardError, match=r"reward fails: raised KeyError\('mine'\) at test_rewards.py:\d+ for"
    ) as caught:
        score_rewards([waits, fails], TWO, TABLE)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RewardError, match=r"reward fails_later: raised LookupError\('later'\)") as caught:
        score_rewards([waits, fails_later], TWO, TABLE)
    assert isinstance(caught.value.__cause__, LookupError)


# --- what a function logs ---


def test_functions_log_metrics_and_columns():
    def chatty(completions: list[str], log_extra: Callable[..., None], log_metric: Callable[..., None]) -> list[float]:
        log_extra("upper", [c.upper() for c in completions])
        log_metric("share", np.float32(0.5))
        log_metric("share", 1)
        log_metric("absent", math.nan)
        return [1.0, 1.0]

    scores = Rewards(chatty).score(TWO, TABLE)
    assert scores.extra == {"upper": ["A", "B"]}
    assert scores.metrics == {"share": 0.75}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda extra, metric: extra("c", ["x"]), r"log_extra c: got 1 values, needs one per completion \(2\)"),
        (lambda extra, metric: metric("m", "much"), "log_metric m: got 'much', needs a number"),
        (lambda extra, metric: metric("m", [1]), r"log_metric m: got \[1\], needs a number"),
    ],
)
def test_what_cannot_be_logged_is_named(call: Callable[..., None], message: str):
    def logs(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        call(log_extra, log_metric)
        return [1.0, 1.0]

    with pytest.raises(InvalidValueError, match=message):
        score_rewards(logs, TWO, TABLE)


def test_logged_metrics_reach_the_metrics_of_the_step(tmp_path: Path):
    def logs(completions: list[str], log_metric: Any) -> list[float]:
        log_metric("mine", 3.0)
        return [float(i % 2) for i in range(len(completions))]

    assert trainer(tmp_path / "a", reward=logs).train_step().metrics["mine"] == 3.0

    def clashes(completions: list[str], log_metric: Any) -> list[float]:
        log_metric("reward", 3.0)
        return [1.0] * len(completions)

    with pytest.raises(InvalidValueError, match="log_metric reward: is the name of a metric of the trainer"):
        trainer(tmp_path / "b", reward=clashes).train_step()


# --- classifiers ---


def classifier(folder: Path, labels: int = 1) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, **{c: i for i, c in enumerate("0123[]ab", 3)}}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[EOS]", pad_token="[PAD]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ suffix }}"
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=64, num_labels=labels,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def expected(model: BertForSequenceClassification, tokenizer: Any, text: str) -> float:
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return float(model(**ids).logits[0, 0])


def test_a_classifier_is_a_reward_by_folder_and_as_an_object(tmp_path: Path):
    model, tokenizer = classifier(tmp_path / "judge")
    by_folder = Rewards([str(tmp_path / "judge"), ones])
    model.train()  # dropout would make it another number
    by_object = Rewards([model, ones], [tokenizer, None])
    for rewards in (by_folder, by_object):
        total, by_name = (scores := rewards.score(TWO, TABLE)).total, scores.by_name
        values = [expected(model, tokenizer, "01a"), expected(model, tokenizer, "2b")]
        assert next(iter(by_name.values())).tolist() == pytest.approx(values, abs=1e-5), "padding changes nothing"
        assert total.tolist() == pytest.approx([v + 1 for v in values], abs=1e-5)
    assert by_folder.names == ["judge", "ones"]


def test_a_classifier_reads_chats_through_its_own_template(tmp_path: Path):
    model, tokenizer = classifier(tmp_path / "judge")
    rows = [{"prompt": [{"role": "user", "content": "01"}]}, {"prompt": [{"role": "user", "content": "2"}]}]
    rewards = Rewards(model, tokenizer, chat_template_kwargs={"suffix": "3"})
    values = [expected(model, tokenizer, "01a3"), expected(model, tokenizer, "2b3")]
    assert rewards.score(TWO, rows).total.tolist() == pytest.approx(values, abs=1e-5)


def test_a_classifier_without_padding_pads_with_its_end_of_text(tmp_path: Path):
    model, tokenizer = classifier(tmp_path / "judge")
    tokenizer.pad_token = None
    Rewards(model, tokenizer).score(TWO, TABLE)
    assert tokenizer.pad_token_id == model.config.pad_token_id == 2


def test_classifiers_that_do_not_fit_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"reward_funcs: .*nowhere.* cannot be opened by AutoModelForSequence"):
        Rewards(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="got the module Linear without a config"):
        Rewards(torch.nn.Linear(1, 1))
    model, tokenizer = classifier(tmp_path / "judge", labels=3)
    with pytest.warns(UserWarning, match="has 3 labels; the logit of the first one is the reward"):
        Rewards(model, tokenizer)
    with pytest.raises(ConfigError, match="reward_processing_classes: got 1 for 2 rewards, needs one each"):
        Rewards([ones, ones], tokenizer)
    with pytest.raises(ConfigError, match="reward_processing_classes: got 3 for 2 rewards"):
        Rewards([ones, ones], [None, None, None])


# --- what nobody judges ---


def test_a_completion_that_nobody_judges_has_no_advantage_and_no_part_in_a_baseline():
    rewards = np.array([2, 2, 2, np.nan, 1, np.nan, 0, 0.5, np.nan, np.nan, np.nan, 7], np.float32)
    groups = np.repeat([5, 6, 7], 4)
    for scale in ("group", "batch", "none"):
        for kind in ("centred", "leave_one_out", "softmax"):
            advantages, metrics = group_advantages(rewards, groups, scale, kind)  # type: ignore[arg-type]
            judged = ~np.isnan(rewards)
            alone, same = group_advantages(rewards[judged], groups[judged], scale, kind)  # type: ignore[arg-type]
            assert advantages[judged].tolist() == alone.tolist(), "as if the others had not been drawn"
            assert (advantages[~judged] == 0).all()
            assert advantages[:4].tolist() == [0, 0, 0, 0]
            assert advantages[11] == 0, "one judged completion has no sibling"
            assert metrics == same
    assert metrics["reward"] == pytest.approx((6 + 1.5 + 7) / 7)
    assert metrics["frac_reward_zero_std"] == pytest.approx(2 / 3)


def test_a_batch_that_nobody_judges_has_no_metrics():
    nothing = np.full(4, np.nan, np.float32)
    advantages, metrics = group_advantages(nothing, np.zeros(4, np.int64))
    assert advantages.tolist() == [0, 0, 0, 0]
    assert metrics == {}
    assert reward_metrics({"a": nothing}) == {}
    one = np.array([np.nan, 2.0], np.float32)
    assert reward_metrics({"a": one}) == {"rewards/a/mean": 2.0}
    assert group_advantages(one, np.zeros(2, np.int64))[1] == {"reward": 2.0, "frac_reward_zero_std": 1.0}


def test_metrics_by_name_are_over_what_was_judged():
    values = np.array([1.0, 3.0, np.nan], np.float32)
    assert reward_metrics({"f": values}) == {"rewards/f/mean": 2.0, "rewards/f/std": pytest.approx(math.sqrt(2))}


def test_rewards_that_are_normalised_before_they_are_summed():
    """By hand: each function's z-scores in the group, weighted, summed, and normalised over the batch."""
    groups = np.array([0, 0, 1, 1])
    rewards = np.array([[0.0, 100.0, 0.0, 100.0], [1.0, 0.0, np.nan, np.nan]], np.float32)
    weights = np.array([1.0, 2.0], np.float32)

    def z(a: float, b: float) -> tuple[float, float]:
        std = abs(a - b) / math.sqrt(2) + 1e-4
        return (a - b) / 2 / std, (b - a) / 2 / std

    sums = [z(0, 100)[i] + 2 * z(1, 0)[i] for i in (0, 1)] + list(z(0, 100))
    spread = np.std(sums, ddof=1) + 1e-4
    expected = [(s - np.mean(sums)) / spread for s in sums]
    assert decoupled_advantages(rewards, weights, groups).tolist() == pytest.approx(expected, abs=1e-5)
    scaled = decoupled_advantages(rewards * np.float32(1000), weights, groups)
    assert scaled.tolist() == pytest.approx(expected, abs=1e-3), "no function counts for the size of its numbers"
    nobody = np.concatenate([rewards, rewards], 1)
    nobody[:, 4:] = np.nan
    longer = decoupled_advantages(nobody, weights, np.concatenate([groups, groups + 2]))
    assert longer.tolist() == pytest.approx([*expected, 0, 0, 0, 0], abs=1e-5)


def abstains(completions: list[str], **_: Any) -> list[float | None]:
    """Judge the first of each four completions only."""
    return [None if i % 4 else 1.0 for i in range(len(completions))]


def never(completions: list[str], **_: Any) -> list[None]:
    return [None] * len(completions)


@pytest.mark.parametrize("reward", [abstains, never])
@pytest.mark.parametrize(
    "options", [{}, {"multi_objective_aggregation": "normalize_then_sum"}, {"stp_dynamic_sampling": 1}]
)
def test_a_step_whose_completions_nobody_can_compare_moves_nothing(
    reward: Any, options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = trainer(tmp_path, reward=reward, **options)
    before = [p.clone() for p in made.model.parameters()]
    with caplog.at_level(logging.WARNING):
        metrics = made.train_step().metrics
    assert "All reward functions returned None for the following kwargs: {" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert ("reward" in metrics) == ("rewards/abstains/mean" in metrics) == (reward is abstains)
    assert "rewards/never/mean" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_an_abstaining_function_beside_another_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        scores = Rewards([ones, abstains]).score(["a"] * 8, [{"prompt": "p"}] * 8)
    assert scores.total.tolist() == [2.0, 1.0, 1.0, 1.0] * 2
    assert not caplog.records


def test_one_completion_of_a_prompt_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="num_generations: got 1, needs at least 2"):
        trainer(tmp_path, num_generations=1)


@pytest.mark.parametrize(("given", "meant"), [(True, "group"), (False, "none"), ("batch", "batch")])
def test_scale_rewards_may_be_true_or_false(given: Any, meant: str, tmp_path: Path):
    assert trainer(tmp_path, scale_rewards=given).args.scale_rewards == meant
