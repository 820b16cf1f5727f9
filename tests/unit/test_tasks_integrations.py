"""Adapters: verl-style scores both ways, reasoning-gym datasets as tasks."""

import sys
import types
from typing import Any

import pytest

from stp_rs.errors import ConfigError
from stp_rs.integrations import reasoning_gym, verl
from stp_rs.models import character_tokenizer


@pytest.mark.parametrize(
    ("source", "text", "truth", "info", "score"),
    [
        ("openai/gsm8k", "\\boxed{1,200}", "1200", None, 1.0),
        ("openai/gsm8k", "\\boxed{1,200}", "1200", {"mode": "published"}, 0.0),
        ("lighteval/MATH", "\\boxed{.5}", "\\frac{1}{2}", {}, 1.0),
        ("countdown", "<answer>2*3</answer>", [[2, 3], 6], {}, 1.0),
        ("countdown", "<answer>2*3</answer>", {"numbers": [2, 3], "target": 7}, {}, 0.0),
        ("sudoku-4x4", "1231341221434321", "1234341221434321", {"puzzle": "1200341221434321"}, 0.5),
    ],
)
def test_compute_score(source: str, text: str, truth: Any, info: dict[str, Any] | None, score: float):
    assert verl.compute_score(source, text, truth, info) == score


def test_compute_score_errors():
    with pytest.raises(ConfigError, match="data_source: got 'code'"):
        verl.compute_score("code", "", "")
    with pytest.raises(ConfigError, match="mode"):
        verl.compute_score("gsm8k", "", "", {"mode": "x"})
    with pytest.raises(ConfigError, match="ground_truth: got 'none'"):
        verl.compute_score("gsm8k", "1", "none")


def test_verl_functions_as_rewards():
    seen = []

    def score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> Any:
        seen.append((data_source, extra_info))
        return {"score": 0.5} if solution_str == ground_truth else 0.25

    reward = verl.reward_from(score, "mine", truth="answer")
    assert reward(["a", "b"], prompts=["", ""], answer=["a", "a"], level=[1, 2], step=3) == [0.5, 0.25]
    assert seen == [("mine", {"level": 1}), ("mine", {"level": 2})]
    own = verl.reward_from(verl.compute_score, "gsm8k")
    assert own(["\\boxed{7}"], ground_truth=["7"], data_source=["openai/gsm8k"]) == [1.0]


class Sums:
    """A reasoning-gym dataset as far as we use one."""

    def __init__(self, size: int, seed: int, top: int) -> None:
        self.size, self.seed, self.top = size, seed, top

    def __getitem__(self, i: int) -> dict[str, Any]:
        a, b = (self.seed * 7919 + i * 31) % self.top, (self.seed + i * 17) % self.top
        return {"question": f"{a}+{b}?", "answer": str(a + b), "metadata": {"i": i}}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return 1.0 if answer == entry["answer"] else 0.01


def create_dataset(name: str, size: int, seed: int, top: int = 50) -> Sums:
    if name != "sums":
        raise ValueError(f"Dataset '{name}' not registered")
    return Sums(size, seed, top)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", types.SimpleNamespace(create_dataset=create_dataset))


def check(task: reasoning_gym.ReasoningGymTask) -> None:
    rows = {split: task.rows(split, 20, seed=1) for split in ("train", "validation", "test")}
    assert all(len(found) == 20 for found in rows.values())
    seen = [{row["question"] for row in found} for found in rows.values()]
    assert not seen[0] & seen[1]
    assert not seen[2] & (seen[0] | seen[1])
    assert rows["train"] == task.rows("train", 20, seed=1)
    shown = task.demonstrations(10, seed=0)
    assert task.score([row["completion"] for row in shown], shown)["solved"] == [1.0] * 10
    assert task.score(["nothing"], shown[:1])["solved"] == [0.0]
    assert task.copies(shown[0]) == {}
    tokenizer = character_tokenizer(task.alphabet)
    assert max(len(row["completion"]) for row in shown) < task.completion_tokens(tokenizer)
    assert max(len(row["prompt"]) for row in shown) <= task.max_prompt_tokens(tokenizer) + 1  # of a sample
    assert task.answer_span("<answer>7</answer>") == (8, 9)
    task.check_places(tokenizer)
    stored = task.load([row["entry"] for row in shown])
    assert [row["prompt"] for row in stored] == [row["prompt"] for row in shown]


@pytest.mark.usefixtures("fake")
def test_reasoning_gym_tasks():
    check(reasoning_gym.ReasoningGymTask("sums", top=50))
    with pytest.raises(ConfigError, match="'prod' not registered"):
        reasoning_gym.ReasoningGymTask("prod")
    with pytest.raises(ConfigError, match="repeats few questions"):
        reasoning_gym.ReasoningGymTask("sums", top=1).rows("test", 3, seed=0)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'stp-rs\[tasks\]'"):
        reasoning_gym.ReasoningGymTask("leg_counting")


def test_the_real_library():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    check(reasoning_gym.ReasoningGymTask("leg_counting", max_animals=4))
