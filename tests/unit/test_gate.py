"""The gated head: hidden states out of the root module, for one thread at a time, whatever wraps the module."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stp_rs
from stp_rs import MaskedLMAdapter, as_diffusion_model
from stp_rs.errors import ModelError
from stp_rs.models.gate import TiedHead, gate, hidden_states
from tests.fixtures import tiny, tokenizer
from tests.standins import write

IDS = torch.tensor([[5, 1, 6, 4], [4, 4, 1, 7]])


def hidden(module: nn.Module) -> torch.Tensor:
    with torch.no_grad(), hidden_states():
        return module(input_ids=IDS).logits


def test_the_root_gives_hidden_states_only_while_they_are_wanted():
    bert = tiny().module.eval()
    with torch.no_grad():
        whole = bert(input_ids=IDS).logits
        inner = bert.bert(input_ids=IDS)[0]
        assert torch.equal(hidden(bert), inner), "bit by bit what the base gives"
        assert torch.equal(bert(input_ids=IDS).logits, whole), "and the head is as it was afterwards"
        assert torch.equal(bert.cls(inner), whole)
    assert gate(bert.cls) is bert.cls
    with pytest.raises(ZeroDivisionError), hidden_states():
        _ = 1 / 0
    with torch.no_grad():
        assert torch.equal(bert(input_ids=IDS).logits, whole)


def test_copies_of_a_gated_module_are_gated_and_have_their_own_weights():
    bert = tiny().module.eval()
    before = hidden(bert)
    for made in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
        assert made.cls is not bert.cls
        assert torch.equal(hidden(made), before)
        with torch.no_grad():
            made.bert.embeddings.word_embeddings.weight.zero_()
        assert not torch.equal(hidden(made), before)
    assert torch.equal(hidden(bert), before)


def test_two_threads_do_not_see_each_others_wish():
    bert = tiny().module.eval()
    with torch.no_grad():
        whole, inner = bert(input_ids=IDS).logits, bert.bert(input_ids=IDS)[0]
    start, wrong = threading.Barrier(2), []

    def ask(wanted: bool) -> None:
        start.wait()
        for _ in range(50):
            with torch.no_grad():
                got = hidden(bert) if wanted else bert(input_ids=IDS).logits
            if not torch.equal(got, inner if wanted else whole):
                wrong.append(wanted)

    threads = [threading.Thread(target=ask, args=(wanted,)) for wanted in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_compiled_root_is_called_compiled_and_agrees():
    plain = tiny()
    calls = []

    def backend(graph: Any, _inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compiled = torch.compile(plain.module.eval(), backend=backend, fullgraph=True)
    policy = as_diffusion_model(compiled, tokenizer())
    assert policy.module is plain.module, "what is saved and trained is the module inside"
    assert calls, "the compiled root was called"
    with torch.no_grad():
        assert torch.allclose(policy.hidden(IDS, None), plain.hidden(IDS, None), atol=1e-6)
        assert torch.allclose(policy.head(policy.hidden(IDS, None)), plain.module(IDS).logits, atol=1e-6)


def test_gradients_through_the_gate_are_those_of_the_models_own_logits():
    one, other = tiny(), tiny()
    one.head(one.hidden(IDS, None)).square().sum().backward()
    other.module(input_ids=IDS).logits.square().sum().backward()
    for (name, a), (_, b) in zip(one.module.named_parameters(), other.module.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-4, rtol=1e-4), name


class Unwrapping(nn.Module):
    """Something that wraps a module as data-parallel classes do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrappers_that_must_see_every_forward_are_refused_by_name():
    for name in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        wrapped = type(name, (Unwrapping,), {})(tiny().module)
        with pytest.raises(ModelError, match=rf"got {name}, which stp_rs does not drive; pass the module inside it"):
            as_diffusion_model(wrapped, tokenizer())


def test_a_shift_given_by_hand_is_used():
    module = tiny().module
    assert as_diffusion_model(module, tokenizer(), logit_shift=1).logit_shift == 1
    assert MaskedLMAdapter(module, tokenizer(), family="Dream").logit_shift == 1
    with pytest.raises(ModelError, match=r"family: got 'Nightmare', needs one of A2D, Dream"):
        MaskedLMAdapter(module, tokenizer(), family="Nightmare")


def test_a_head_that_is_the_embedding_itself_is_left_out_of_a_pass(tmp_path: Path):
    from stp_rs.models.saving import save_module

    folder = write("llada", tmp_path / "llada", weight_tying=True)
    policy, words = stp_rs.load(folder, trust_remote_code=True)
    assert isinstance(policy._head[0], TiedHead)
    ids = torch.tensor([[5, 6, policy.mask_token_id, 7]])
    with torch.no_grad():
        states = policy.hidden(ids, None)
        assert states.shape == (1, 4, policy.module.config.d_model)
        assert torch.allclose(policy.head(states), policy.own_output(ids).logits, atol=1e-6)
    policy.head(policy.hidden(ids, None)).sum().backward()
    given = policy.module.get_input_embeddings().weight.grad.clone()
    policy.module.zero_grad()
    policy.own_output(ids).logits.sum().backward()
    assert torch.allclose(given, policy.module.get_input_embeddings().weight.grad, atol=1e-5)
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        twin.module.get_input_embeddings().weight.zero_()
        assert not twin.head(twin.hidden(ids, None)).any()
        assert policy.head(policy.hidden(ids, None)).any()
    save_module(policy.module, tmp_path / "saved")
    for file in folder.glob("*.py"):
        (tmp_path / "saved" / file.name).write_bytes(file.read_bytes())
    words.save_pretrained(tmp_path / "saved")
    again, _ = stp_rs.load(tmp_path / "saved", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again.head(again.hidden(ids, None)), policy.head(policy.hidden(ids, None)))


def test_a_root_makes_no_cache_of_its_own(tmp_path: Path):
    policy, _ = stp_rs.load(write("llada2", tmp_path / "llada2"), trust_remote_code=True, gradient_checkpointing=True)
    ids = torch.tensor([[5, 6, policy.mask_token_id, 7, 5, 6]])
    policy.head(policy.hidden(ids, None)).sum().backward()
    policy.head(policy.hidden_pair(ids, ids, None)).sum().backward()
    asked = []
    policy.module.register_forward_pre_hook(lambda _m, _a, kwargs: asked.append(kwargs["use_cache"]), with_kwargs=True)
    policy.own_output(ids)
    assert asked == [False]
