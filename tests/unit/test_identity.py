"""A resume is of the same run: rewards, data, weights, tokenizer, priors and version are the same, or it is refused."""

import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs.data.rows import Rows
from stp_rs.errors import CheckpointError
from stp_rs.priors import Template
from stp_rs.train import identity
from stp_rs.train.checkpoint import newest_checkpoint
from stp_rs.train.identity import described, rows_hash, tokenizer_hash, weights_hash
from tests.fixtures import ROWS, ones, tiny, tokenizer, trainer

TWO = {"stp_rollouts": 2, "num_iterations": 1, "save_strategy": "steps", "save_steps": 2}


def twos(completions: list[str], **_: Any) -> list[float]:
    return [text.count("2") / 6 for text in completions]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("identity") / "run"
    trainer(folder, **TWO).train()
    return folder


CHANGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "another reward": ("reward_funcs: ones, twos are", lambda run: trainer(run, None, twos, **TWO)),
    "one more reward": ("reward_funcs: twos is new", lambda run: trainer(run, None, [ones, twos], **TWO)),
    "another row": ("train_dataset: has another", lambda run: trainer(run, rows=[*ROWS[:-1], {"prompt": "33"}], **TWO)),
    "a row less": ("train_dataset: has another", lambda run: trainer(run, rows=ROWS[:-1], **TWO)),
    "another order": ("train_dataset: has another", lambda run: trainer(run, rows=ROWS[::-1], **TWO)),
    "one more column": ("train_dataset", lambda run: trainer(run, rows=[{**row, "n": 1} for row in ROWS], **TWO)),
    "other weights": ("model: has another", lambda run: trainer(run, tiny(seed=1), **TWO)),
    "a prior": (
        "priors: was not noted or not given",
        lambda run: trainer(run, priors=[Template({0: "1"}, tokenizer())], **TWO),
    ),
    "an option": ("beta is 0.1, was 0.0", lambda run: trainer(run, **TWO, beta=0.1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_refused_with_what_differs_and_nothing_is_touched(change: str, run: Path):
    differs, make = CHANGES[change]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    made = make(run)
    with pytest.raises(CheckpointError, match=re.escape(differs)) as refused:
        made.train(resume_from_checkpoint=True)
    assert "start anew in another or an emptied output_dir" in str(refused.value)
    with pytest.raises(CheckpointError, match=r"holds a run \(checkpoint-2\)"):
        made.train(resume_from_checkpoint=False)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    way = re.search(r"stp_allow_changed=(\S+)", str(refused.value))
    assert way is not None
    made.args.stp_allow_changed = way[1]
    assert made.find_checkpoint(True) is not None


def test_more_updates_are_no_difference_beside_another_reward(run: Path):
    longer = {**TWO, "stp_rollouts": 3}
    assert trainer(run, **longer).find_checkpoint(True) is not None
    with pytest.raises(CheckpointError, match=r"other settings \(reward_funcs\)"):
        trainer(run, None, twos, **longer).find_checkpoint(True)


def test_the_same_run_and_another_version(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert trainer(run, **TWO).find_checkpoint(True) is not None
    monkeypatch.setattr(identity, "__version__", "9.9.9")
    with pytest.raises(CheckpointError, match=r"stp_rs is '9.9.9', was '"):
        trainer(run, **TWO).find_checkpoint(True)


def test_a_checkpoint_that_does_not_say_is_refused(run: Path, tmp_path: Path):
    found = newest_checkpoint(run)
    assert found is not None
    assert found.state["inputs"].keys() > {"model", "reward_funcs", "train_dataset", "processing_class", "stp_rs"}
    del found.state["inputs"]
    trainer(tmp_path, **TWO).save()
    state = json.loads((tmp_path / "checkpoint-0" / "stp_state.json").read_text())
    assert state["inputs"]["train_dataset"] == rows_hash(Rows(ROWS, 2, seed=0))


def test_a_second_call_starts_anew_and_nothing_of_the_first_is_left(tmp_path: Path):
    made = trainer(tmp_path, **{**TWO, "save_steps": 1})
    made.train()
    weights = newest_checkpoint(tmp_path).state["inputs"]["model"]  # type: ignore[union-attr] # it was just saved
    made.args.max_steps = 1
    made.train()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1, "not the second checkpoint of the first call"
    assert newest.state["inputs"]["model"] != weights, "it started from what the first call had trained"


# --- code ---


def module(path: Path, source: str) -> Any:
    """Return a module of a user, from a file."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["mine"] = made
    spec.loader.exec_module(made)
    return made


SOURCE = """
import functools, math, re
SCALE = 2
PATTERN = re.compile("[0-9]+")
SEEN = []
calls = 0
def helper(text): return text.count("1")
def deeper(text): return helper(text) * SCALE
def deco(f):
    @functools.wraps(f)
    def inner(*args, **kwargs): return f(*args, **kwargs)
    return inner
def plain(completions, **_): return [float(len(c)) for c in completions]
def helped(completions, **_): return [deeper(c) for c in completions]
def matched(completions, **_): return [len(PATTERN.findall(c)) for c in completions]
def counted(completions, **_):
    global calls
    calls += 1
    SEEN.append(calls)
    return [0.0 for _ in completions]
@deco
def wrapped(completions, **_): return [0.0 for _ in completions]
def make(target, step=1):
    def reward(completions, **_): return [float(c == target) * step for c in completions]
    return reward
class Scorer:
    penalty = 1
    def __init__(self, target): self.target, self.calls = target, 0
    def __call__(self, completions, **_):
        self.calls += 1
        return [self.score(c) for c in completions]
    def score(self, text): return float(text == self.target)
"""

EDITS = {
    # what is changed -> the reward that it changes
    "float(len(c))": ("0.5 * len(c)", "plain"),
    'text.count("1")': ('text.count("2")', "helped"),
    "SCALE = 2": ("SCALE = 3", "helped"),
    "[0-9]+": ("[0-8]+", "matched"),
    "return f(*args": ("return [1.0] or f(*args", "wrapped"),
    "== target)": ("!= target)", "made"),
    "text == self.target": ("text != self.target", "scorer"),
}


def rewards(mine: Any) -> dict[str, Any]:
    return {
        **{name: getattr(mine, name) for name in ("plain", "helped", "matched", "counted", "wrapped")},
        "made": mine.make("12"),
        "scorer": mine.Scorer("12"),
        "method": mine.Scorer("12").score,
        "partial": functools.partial(mine.make, "12"),
        "lambda": eval("lambda completions: [SCALE]", vars(mine)),
    }


@pytest.mark.parametrize("old", EDITS)
def test_an_edit_changes_the_rewards_that_read_it_and_no_others(old: str, tmp_path: Path):
    new, name = EDITS[old]
    file = tmp_path / "mine.py"
    before = {key: described(reward) for key, reward in rewards(module(file, SOURCE)).items()}
    assert {key: described(reward) for key, reward in rewards(module(file, SOURCE)).items()} == before
    after = {key: described(reward) for key, reward in rewards(module(file, SOURCE.replace(old, new))).items()}
    changed = {key for key in before if before[key] != after[key]}
    assert name in changed
    related = {"made": {"partial"}, "scorer": {"method"}, "helped": {"lambda"} if "SCALE" in old else set()}
    assert changed <= {name, *related.get(name, set())}


def test_what_was_given_to_a_reward_tells_it_apart_and_what_it_counts_does_not(tmp_path: Path):
    mine = module(tmp_path / "mine.py", SOURCE)
    different = [mine.make("1"), mine.make("2"), mine.make("1", step=2), mine.Scorer("1"), mine.Scorer("2")]
    different += [functools.partial(mine.plain, a=1), functools.partial(mine.plain, a=2), mine.plain, len, max]
    different += [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    assert len({described(reward) for reward in different}) == len(different)
    scorer = mine.Scorer("1")
    before = [described(scorer), described(mine.counted)]
    scorer(["1"])
    mine.counted(["1"])
    assert [described(scorer), described(mine.counted)] == before
    mine.plain.stp_identity = "length, version 3"
    assert described(mine.plain) == "length, version 3"


# --- data, weights, tokenizer ---


def test_rows_of_any_kind_are_hashed_by_content(tmp_path: Path):
    def made(value: Any) -> str:
        return rows_hash(Rows([{"prompt": "1", "x": value}], 1, seed=0))

    class Thing:
        pass

    kinds: list[Callable[[], Any]] = [
        *(lambda: 1, lambda: 1.0, lambda: "1", lambda: None, lambda: b"1", lambda: {1, 2, 3}, lambda: {(1, 2): 3}),
        *(lambda: np.arange(3), lambda: np.arange(3.0), lambda: np.array([1, "a"], dtype=object), Thing),
        *(
            lambda: torch.zeros(2, dtype=torch.bfloat16),
            lambda: [{"role": "user", "content": "\ud800"}],
            lambda: np.nan,
        ),
    ]
    assert len({made(kind()) for kind in kinds}) == len(kinds)
    assert [made(kind()) for kind in kinds] == [made(kind()) for kind in kinds]


def test_a_large_set_is_hashed_from_its_whole_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identity, "ROWS", 4)
    rows = [{"prompt": str(i)} for i in range(10)]
    before = rows_hash(Rows(rows, 1, seed=0))
    assert rows_hash(Rows([*rows[:7], {"prompt": "x"}, *rows[8:]], 1, seed=0)) != before
    assert rows_hash(Rows(rows[:9], 1, seed=0)) != before


def test_weights_and_tokenizers_are_told_apart():
    module = tiny().module
    before = weights_hash(module)
    assert before == weights_hash(tiny().module)
    with torch.no_grad():
        next(module.parameters()).view(-1)[3] += 1e-7
    assert weights_hash(module) != before
    assert weights_hash(tiny().module.to(torch.bfloat16)) != before
    known = tokenizer_hash(tokenizer())
    tokenizer()(["1", "12"], padding=True)
    assert tokenizer_hash(tokenizer()) == known, "what a call sets is not the tokenizer"
    tokenizer().chat_template = "{{ messages }}"
    try:
        assert tokenizer_hash(tokenizer()) != known
    finally:
        tokenizer().chat_template = None
