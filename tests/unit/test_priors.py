"""Spatial priors by example: Template, Copy, OfflineGeneration, and how they meet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from stp_rs import Copy, OfflineGeneration, PriorSet, Template, Unmasking, compose_priors
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.errors import CheckpointError, InvalidValueError, PriorConflictError
from stp_rs.models import character_tokenizer
from stp_rs.priors import END, eligible_tokens, policy_hash, tag_span, tokenizer_hash
from stp_rs.rollout.generate import generate
from stp_rs.rollout.params import GREEDY
from tests.fixtures import Tabular, tiny, tokenizer

EOS, ZERO, ONE, OPEN, CLOSE = 2, 4, 5, 8, 9
LENGTH = 6


def batch(*texts: str) -> PromptBatch:
    return encode_prompts([{"prompt": text} for text in texts], tokenizer(), uids=range(len(texts)))


def dense(prior: PriorSet, length: int = LENGTH) -> list[list[int]]:
    ids = np.empty((len(prior), length), np.int64)
    prior.fill(ids)
    return ids.tolist()


def copy_first(row: dict[str, Any]) -> dict[int, str]:
    return {1: row["prompt"][0]}


def test_a_template_counts_from_either_end():
    prior = Template({0: "[", -2: "]", -1: END}, tokenizer())(batch("0", "1"), LENGTH)
    assert dense(prior) == [[OPEN, -1, -1, -1, CLOSE, EOS]] * 2
    assert prior.row(0)[0] == (0, OPEN, "template")


def test_the_end_of_a_bert_tokenizer_is_its_separator():
    bert = SimpleNamespace(eos_token_id=None, sep_token_id=7)
    assert dense(Template({-1: END}, bert)(batch("0"), LENGTH))[0][-1] == 7


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({6: "["}, "prior position: got 6, needs one from -6 to 5"),
        ({-7: "["}, "prior position: got -7"),
        ({0: "[["}, r"prior text '\[\[': got 2 tokens, needs exactly one"),
    ],
)
def test_a_template_that_does_not_fit_says_so(texts: dict[int, str], message: str):
    with pytest.raises(InvalidValueError, match=message):
        Template(texts, tokenizer())(batch("0"), LENGTH)


def test_a_template_that_contradicts_itself_is_a_conflict():
    assert dense(Template({0: "[", -6: "["}, tokenizer())(batch("0"), LENGTH))[0][0] == OPEN
    with pytest.raises(PriorConflictError, match="0"):
        Template({0: "[", -6: "]"}, tokenizer())(batch("0"), LENGTH)


def test_copies_are_each_rows_own_and_compose_with_the_template():
    prompts = batch("0", "12")
    both = compose_priors([Template({0: "["}, tokenizer()), Copy(copy_first, tokenizer())], prompts, LENGTH)
    assert dense(both) == [[OPEN, ZERO, -1, -1, -1, -1], [OPEN, ONE, -1, -1, -1, -1]]
    assert [source for _, _, source in both.row(1)] == ["template", "copy"]
    assert compose_priors([], prompts, LENGTH) == PriorSet.empty(2)
    with pytest.raises(PriorConflictError, match=r"row 1.*position 1"):
        compose_priors([Template({1: "0"}, tokenizer()), Copy(copy_first, tokenizer())], prompts, LENGTH)


def test_the_answer_is_the_last_tag_and_what_follows_an_unclosed_one():
    find = tag_span()
    assert find("x<answer>12</answer>y") == (9, 11)
    assert find("<answer>1</answer><answer>23") == (26, 28)
    assert find("no tag") is None


def test_tokens_of_the_answer_are_not_eligible():
    ids = tokenizer()(["0[12]3"], add_special_tokens=False)["input_ids"]
    span = tag_span("[", "]")
    assert eligible_tokens(np.array(ids), tokenizer(), span).tolist() == [[1, 1, 0, 0, 1, 1]]
    assert eligible_tokens(np.array(ids), tokenizer(), None).tolist() == [[1] * 6]
    unclosed = np.array([[ZERO, OPEN, ONE, EOS, EOS, EOS]])
    assert eligible_tokens(unclosed, tokenizer(), span).tolist() == [[1, 1, 0, 1, 1, 1]]


def test_text_behind_the_end_does_not_hide_the_answer():
    # the completion is "[0]"; what the policy left behind the end of text is never shown to a reward
    ids = np.array([[OPEN, ZERO, CLOSE, EOS, OPEN, ONE]])
    assert eligible_tokens(ids, tokenizer(), tag_span("[", "]")).tolist() == [[1, 0, 1, 1, 1, 1]]


def build(keep: float = 0.5, selector: str = "top_confidence", **options: Any) -> tuple[OfflineGeneration, Tabular]:
    model = Tabular(vocab=10, width=12, seed=11)
    prior = OfflineGeneration(keep, selector, **options)
    prior.build(model, batch("0", "31", "2"), tokenizer(), Unmasking(3), completion_length=LENGTH)
    return prior, model


@pytest.mark.parametrize(("keep", "count"), [(0.0, 0), (0.05, 1), (0.5, 3), (1.0, 6)])
@pytest.mark.parametrize("selector", ["top_confidence", "random", "prefix", "span"])
def test_anchors_are_a_share_of_the_policys_own_completion(keep: float, count: int, selector: str):
    prior, model = build(keep, selector)
    prompts = batch("31", "0")
    anchors = np.array(dense(prior(prompts, LENGTH)))
    assert (anchors >= 0).sum(1).tolist() == [count, count]
    greedy = generate(model, prompts, Unmasking(3), completion_length=LENGTH, sampling=GREEDY).token_ids
    assert ((anchors < 0) | (anchors == greedy)).all()
    if selector == "prefix":
        assert (anchors[:, :count] >= 0).all()


def test_the_most_confident_tokens_are_those_of_one_fully_masked_forward():
    prior, model = build(0.5)
    prompts = batch("0", "31", "2")
    rows = generate(model, prompts, Unmasking(3), completion_length=LENGTH, sampling=GREEDY).token_ids
    for row, ids in enumerate(rows):
        prompt = prompts.prompt_ids[row, : prompts.prompt_length[row]].tolist()
        canvas = torch.tensor([prompt + [model.mask_token_id] * LENGTH])
        with torch.no_grad():
            logits = model.head(model.hidden(canvas, None)[0, len(prompt) :])
        logits[:, model.mask_token_id] = -torch.inf
        confidence = logits.log_softmax(-1).numpy()[np.arange(LENGTH), ids]
        kept = {int(i) for i in np.argsort(-confidence, kind="stable")[:3]}
        assert {p for p, _, _ in prior(prompts, LENGTH).row(row)} == kept


def test_the_answer_span_is_never_fixed():
    def first_half(_text: str) -> tuple[int, int]:
        return 0, 3

    prior, model = build(1.0, answer_span=first_half)
    prompts = batch("0", "31", "2")
    anchors = np.array(dense(prior(prompts, LENGTH)))
    ids = generate(model, prompts, Unmasking(3), completion_length=LENGTH, sampling=GREEDY).token_ids
    expected = eligible_tokens(ids, tokenizer(), first_half)
    assert anchors.tolist() == np.where(expected == 1, ids, -1).tolist()
    assert 0 < expected.sum() < expected.size


def test_stored_anchors_are_token_ids_with_hashes(tmp_path: Path):
    prior, model = build()
    path = tmp_path / "deep" / "anchors.safetensors"
    prior.save(path)
    assert load_file(path)["offline_generation/ids"].dtype == np.int64
    again = OfflineGeneration(0.5)
    again.load(path, tokenizer())
    prompts = batch("2", "0")
    assert again(prompts, LENGTH) == prior(prompts, LENGTH)
    assert again.hashes == {"tokenizer": tokenizer_hash(tokenizer()), "policy": policy_hash(model)}
    with pytest.raises(CheckpointError, match="made with another tokenizer"):
        OfflineGeneration().load(path, character_tokenizer("abc"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot be read as stored anchors"):
        OfflineGeneration().load(path, tokenizer())
    with pytest.raises(CheckpointError, match="cannot be read"):
        OfflineGeneration().load(tmp_path / "none", tokenizer())


def test_what_was_not_built_is_refused():
    prior, _ = build()
    with pytest.raises(InvalidValueError, match=r"no anchors for the prompt '11'; call build with it first"):
        prior(batch("0", "11"), LENGTH)
    with pytest.raises(InvalidValueError, match="built for completions of 6 tokens, got 7"):
        prior(batch("0"), 7)
    assert dense(prior(batch(), LENGTH)) == []


def test_hashes_tell_policies_and_tokenizers_apart():
    one, same, other = tiny(seed=0), tiny(seed=0, dropout=0.5), tiny(seed=1)
    assert policy_hash(one) == policy_hash(same) != policy_hash(other)
    assert tokenizer_hash(tokenizer()) == tokenizer_hash(character_tokenizer("0123[]"))
    assert tokenizer_hash(tokenizer()) != tokenizer_hash(character_tokenizer("1023[]"))
