"""Adapters: the head on gathered rows is the model's own, and a row never depends on its batch."""

import copy
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from stp_rs import MaskedLMAdapter, Unmasking, as_diffusion_model
from stp_rs.config.sections import PolicyConfig
from stp_rs.data.prompts import encode_prompts, end_of_text_ids, text_lengths
from stp_rs.errors import CheckpointError, ModelError
from stp_rs.models import load_policy, tiny_policy
from stp_rs.models.base import DiffusionModel, encode, passes_without_dropout
from stp_rs.models.probes import probe
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import draw_masks
from stp_rs.rollout.generate import generate, rollout_metrics
from stp_rs.rollout.rewards import decode_completions
from stp_rs.train.warmup import warm_up
from tests.fixtures import Tabular, tiny, tokenizer

VOCAB = len(tokenizer())
SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
DISTIL = {"vocab_size": VOCAB, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0}
NO_SPECIAL = {"eos_token_id": 2, "bos_token_id": None, "cls_token_id": None, "sep_token_id": None}
CLASSES = {
    "Bert": SIZE,
    "Roberta": SIZE,
    "RobertaPreLayerNorm": SIZE,
    "DistilBert": DISTIL,
    "Albert": {**SIZE, "embedding_size": 8},
    "Electra": {**SIZE, "embedding_size": 8},
    "ModernBert": {**SIZE, **NO_SPECIAL},
}


@cache
def masked_lm(name: str) -> Any:
    """Return a random model whose weights are large enough that every part of it shows in the logits."""
    config = getattr(hf, f"{name}Config")(**CLASSES[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(hf, f"{name}ForMaskedLM")(config).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(4, VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CLASSES)
def test_the_head_of_gathered_rows_gives_the_models_logits(name: str):
    module = masked_lm(name)
    adapter = MaskedLMAdapter(module, tokenizer())
    assert isinstance(adapter, DiffusionModel)
    assert adapter.respects_padding
    canvas = ids(3, 11)
    with torch.no_grad():
        hidden = adapter.hidden(canvas, None)
        whole = module(input_ids=canvas).logits
        rows = hidden.reshape(33, -1)[[0, 5, 32, 5]]
        assert torch.allclose(adapter.head(rows), whole.reshape(33, -1)[[0, 5, 32, 5]], atol=1e-5)
    assert whole.std() > 0.05, "a model that says nothing would prove nothing"


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_alone_is_the_row_in_a_padded_batch(name: str):
    adapter = MaskedLMAdapter(masked_lm(name), tokenizer())
    check_rows_are_independent(adapter)


def check_rows_are_independent(model: DiffusionModel) -> None:
    """Hold every row of a ragged batch to the same row alone."""
    lengths = np.array([7, 12, 3, 7, 12], np.int32)
    canvas = ids(5, 12)
    for row, length in enumerate(lengths):
        canvas[row, length:] = model.pad_token_id
    with torch.no_grad():
        together = model.head(encode(model, canvas, lengths))
        for row, length in enumerate(lengths.tolist()):
            alone = model.head(model.hidden(canvas[row : row + 1, :length], None))
            assert torch.allclose(together[row, :length], alone[0], atol=1e-5)


def test_a_model_that_attends_to_pads_is_found_out_and_still_gives_independent_rows():
    adapter = tiny()
    bert = adapter.module.bert
    forward = bert.forward

    def careless(input_ids: torch.Tensor, attention_mask: Any = None, **others: Any) -> Any:
        return forward(input_ids=input_ids, attention_mask=None, **others)

    bert.forward = careless
    with passes_without_dropout(adapter.module):
        assert not MaskedLMAdapter(adapter.module, tokenizer()).respects_padding
        with pytest.raises(AssertionError):
            check_rows_are_independent(adapter)  # it was told that the model respects padding
        check_rows_are_independent(MaskedLMAdapter(adapter.module, tokenizer()))


def test_a_model_that_attends_to_pads_is_never_asked_to():
    model = Tabular(vocab=VOCAB, width=12, seed=0)
    model.respects_padding = False
    widths = []
    hidden = model.hidden

    def watched(ids_BS: torch.Tensor, lengths_B: Any) -> torch.Tensor:
        assert lengths_B is None
        widths.append(ids_BS.shape)
        return hidden(ids_BS, lengths_B)

    model.hidden = watched
    check_rows_are_independent(model)
    assert widths[:3] == [(1, 3), (2, 7), (2, 12)]


def test_a_causal_model_is_refused():
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=40, bos_token_id=None, eos_token_id=2
    )
    with pytest.raises(ModelError, match="it is causal; a masked-diffusion policy needs bidirectional attention"):
        MaskedLMAdapter(hf.GPT2LMHeadModel(config), tokenizer())


@pytest.mark.parametrize("kind", ["diffusion_gemma", "DiffusionGemmaForBlockDiffusion"])
def test_diffusion_gemma_is_refused_by_name(kind: str):
    module = nn.Linear(1, 1)
    module.config = types.SimpleNamespace(model_type=kind)
    with pytest.raises(ModelError, match=r"DiffusionGemma is not a masked-diffusion model .* use LLaDA"):
        as_diffusion_model(module, tokenizer())


class Shifted(Tabular):
    """A `Tabular` whose row p - 1 predicts token p."""

    def hidden(self, ids_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        return super().hidden(ids_BS, lengths_B).roll(-1, dims=1)


def test_shifted_logits_are_read_one_row_earlier():
    prompts = encode_prompts([{"prompt": "01"}, {"prompt": "3[20"}], tokenizer(), uids=[4, 9])
    results = []
    for model in (Tabular(vocab=VOCAB, width=12, seed=3), Shifted(vocab=VOCAB, width=12, seed=3, shift=1)):
        rollout = generate(model, prompts, Unmasking(3), completion_length=6)
        masks = draw_masks(design(), rollout, seed=0)
        with torch.no_grad():
            results.append([rollout.token_ids, rollout.logprob, token_elbo(model, rollout, masks).numpy()])
    assert all((a == b).all() for a, b in zip(*results, strict=True))


def design() -> Any:
    from stp_rs import Design

    return Design("cover", 2)


def test_dream_is_known_to_be_shifted():
    module = masked_lm("Bert")
    module.config.model_type = "Dream"
    try:
        assert as_diffusion_model(module, tokenizer()).logit_shift == 1
    finally:
        module.config.model_type = "bert"
    assert as_diffusion_model(module, tokenizer()).logit_shift == 0


class Toy(nn.Module):
    """A bidirectional model of no known class: its head is found through `get_output_embeddings`."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(vocab_size=VOCAB, model_type="toy")
        self.embed = nn.Embedding(VOCAB, 8)
        self.tail = nn.ModuleDict({"out": nn.Linear(8, VOCAB)})
        self.fail = False

    def get_output_embeddings(self) -> nn.Module:
        return self.tail["out"]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        seen = self.embed(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        context = (seen * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        if self.fail:
            raise RuntimeError("out of memory")
        return types.SimpleNamespace(logits=self.tail["out"](torch.tanh(seen + context)))


def test_an_unknown_model_is_split_at_its_output_embedding():
    module = Toy()
    adapter = MaskedLMAdapter(module, tokenizer())
    canvas = ids(2, 5)
    assert adapter.hidden(canvas, None).shape == (2, 5, 8)
    assert torch.allclose(adapter.head(adapter.hidden(canvas, None)), module(canvas).logits)
    check_rows_are_independent(adapter)
    module.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        adapter.hidden(canvas, None)
    assert isinstance(module.tail["out"], nn.Linear), "the head is put back whatever happens"
    headless = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"it has no config.*pass an object with the members"):
        as_diffusion_model(headless, tokenizer())
    headless.config = types.SimpleNamespace(vocab_size=VOCAB, model_type="toy")
    with pytest.raises(ModelError, match=r"no output head was found; pass an object with the members"):
        MaskedLMAdapter(headless, tokenizer())


def test_what_cannot_be_a_policy_says_why():
    with pytest.raises(ModelError, match="got str, needs a transformers masked LM or a DiffusionModel"):
        as_diffusion_model("bert-base-uncased", tokenizer())
    with pytest.raises(ModelError, match=r"tokenizer: got None, needs the model's tokenizer"):
        as_diffusion_model(masked_lm("Bert"))
    bare = types.SimpleNamespace(mask_token_id=None, pad_token_id=0, eos_token_id=2)
    with pytest.raises(ModelError, match=r"mask_token_id is None; set it to the token that the model was trained with"):
        MaskedLMAdapter(masked_lm("Bert"), bare)
    bert_like = types.SimpleNamespace(mask_token_id=1, pad_token_id=0, eos_token_id=None, sep_token_id=5)
    assert MaskedLMAdapter(masked_lm("Bert"), bert_like).eos_token_id == 5
    own = Tabular(vocab=4, width=4, seed=0)
    assert as_diffusion_model(own) is own


def test_model_passes_leave_the_training_mode_as_it_was():
    adapter = tiny(dropout=0.5)
    for training in (True, False):
        adapter.module.train(training)
        MaskedLMAdapter(adapter.module, tokenizer())
        assert adapter.module.training is training
        with passes_without_dropout(adapter.module):
            assert not adapter.module.training
        assert adapter.module.training is training


def test_the_tiny_policy_is_seeded_and_comes_back_from_disk(tmp_path: Path):
    size = PolicyConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    before = torch.get_rng_state()
    first, again, other = (tiny_policy(size, vocab_size=VOCAB, max_length=20, seed=s) for s in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    first.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded, loaded_tokenizer = load_policy(tmp_path)
    canvas = ids(2, 20)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(canvas).logits, first.eval()(canvas).logits)
    assert loaded_tokenizer.get_vocab() == tokenizer().get_vocab()
    text = "0123[]"
    encoded = loaded_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoded == list(range(4, 10))
    assert loaded_tokenizer.decode(encoded) == text
    assert as_diffusion_model(loaded, loaded_tokenizer).mask_token_id == 1
    with pytest.raises(CheckpointError, match=r"no config.json"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_policy(tmp_path)


def chat_tokenizer() -> Any:
    """Return the tests' tokenizer with the two ends of a chat model, as special tokens."""
    made = copy.deepcopy(tokenizer())
    made.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|eot_id|>"]})
    return made


def test_every_token_that_ends_a_text_ends_a_completion():
    chat = chat_tokenizer()
    end, turn = chat.eos_token_id, chat.convert_tokens_to_ids("<|im_end|>")
    one, two = chat.convert_tokens_to_ids("1"), chat.convert_tokens_to_ids("2")
    assert end_of_text_ids(chat) == (end, turn, chat.convert_tokens_to_ids("<|eot_id|>"))
    rows = np.array([[one, two, turn, one, one], [one, end, two, turn, one], [two] * 5, [turn] * 5])
    assert decode_completions(rows, np.array([5, 5, 4, 5]), chat) == ["12", "1", "2222", ""]
    assert text_lengths(rows, chat).tolist() == [2, 1, 5, 0]
    assert end_of_text_ids(types.SimpleNamespace(eos_token_id=None, sep_token_id=7)) == (7,)
    assert end_of_text_ids(types.SimpleNamespace(eos_token_id=None)) == ()


def test_a_row_that_shows_any_end_of_text_is_truncated_there():
    model = Tabular(vocab=8, width=12, seed=0)
    with torch.no_grad():
        model.module.own[:, 6] = 8.0  # the second of two ends is drawn nearly everywhere
    model.eos_token_ids = (2, 6)
    prompts = encode_prompts([{"prompt": "01"}], tokenizer(), uids=[4])
    rollout = generate(model, prompts, Unmasking(6, confidence="random", eos="truncate"), completion_length=6)
    first = int(np.isin(rollout.token_ids[0], (2, 6)).argmax())
    assert rollout.token_ids[0, first] == 6
    assert (rollout.token_ids[0, first + 1 :] == 2).any() or rollout.nfe[0] == 6, "the first end fills the rest"
    assert rollout_metrics(rollout.replaced(completions=[""]), (2, 6))["completions/mean_length"] == first + 1
    alone = Tabular(vocab=8, width=12, seed=0)
    alone.module.load_state_dict(model.module.state_dict())
    whole = generate(alone, prompts, Unmasking(6, confidence="random", eos="truncate"), completion_length=6)
    assert whole.nfe[0] >= rollout.nfe[0], "a policy with one end reads the other as a token"


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_of_text():
    plain = copy.deepcopy(tokenizer())
    plain.pad_token = None
    prompts = encode_prompts([{"prompt": "0"}, {"prompt": "012"}], plain, uids=[1, 2])
    assert prompts.prompt_ids[0].tolist() == [4, 2, 2]
    policy = MaskedLMAdapter(masked_lm("Bert"), plain)
    assert policy.pad_token_id == policy.eos_token_id == 2


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_models_with_an_encoder_and_a_decoder_are_refused_by_name(kind: str):
    module = nn.Linear(1, 1)
    module.config = types.SimpleNamespace(model_type=kind, is_encoder_decoder=True)
    with pytest.raises(ModelError, match=rf"{kind}: it has an encoder and a causal decoder, and no canvas to fill"):
        as_diffusion_model(module, tokenizer())


def test_special_tokens_beyond_the_embedding_are_one_sentence():
    module = masked_lm("Bert")
    for name in ("mask_token_id", "pad_token_id", "eos_token_id"):
        far = types.SimpleNamespace(**{"mask_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, name: VOCAB})
        with pytest.raises(ModelError, match=rf"{name}: got {VOCAB}, but the model has embeddings for the ids 0 to"):
            MaskedLMAdapter(module, far)
    same = types.SimpleNamespace(mask_token_id=2, pad_token_id=0, eos_token_id=2)
    with pytest.raises(ModelError, match="mask_token_id: got 2, which also pads or ends a text"):
        MaskedLMAdapter(module, same)
    grown = hf.BertForMaskedLM(hf.BertConfig(**SIZE))
    grown.resize_token_embeddings(VOCAB + 2)
    far = types.SimpleNamespace(mask_token_id=VOCAB + 1, pad_token_id=0, eos_token_id=2)
    assert MaskedLMAdapter(grown, far).mask_token_id == VOCAB + 1


def test_a_prompt_of_tokens_that_the_model_lacks_is_one_sentence():
    wide = copy.deepcopy(tokenizer())
    wide.add_tokens(["<new>"])
    policy = MaskedLMAdapter(hf.BertForMaskedLM(hf.BertConfig(**SIZE)), wide)
    prompts = encode_prompts([{"prompt": "01"}, {"prompt": "0<new>"}], wide, uids=[1, 2])
    with pytest.raises(ModelError, match=rf"got the token id {VOCAB}, but the model has embeddings for the ids 0 to"):
        generate(policy, prompts, Unmasking(3), completion_length=3)
    with pytest.raises(ModelError, match=rf"got the token id {VOCAB}"):
        warm_up(policy, wide, [{"prompt": "0", "completion": "1<new>"}], completion_length=3, steps=1, batch_size=1,
                learning_rate=1e-3)  # fmt: skip
    policy.module.resize_token_embeddings(VOCAB + 1)
    assert generate(policy, prompts, Unmasking(3), completion_length=3).token_ids.shape == (2, 3)


def test_configuration_and_tokenizer_must_name_one_mask_token():
    config = hf.BertConfig(**SIZE, mask_token_id=3)
    with pytest.raises(ModelError, match=r"mask_token_id: the tokenizer says 1 and the model's configuration 3"):
        MaskedLMAdapter(hf.BertForMaskedLM(config), tokenizer())
    assert MaskedLMAdapter(hf.BertForMaskedLM(config), tokenizer(), mask_token_id=3).mask_token_id == 3


class Short(Tabular):
    """A policy whose embedding and head have rows for so many ids."""

    def __init__(self, embeddings: int, logits: int, mask: int) -> None:
        super().__init__(vocab=VOCAB, width=8, seed=0, mask=mask)
        self._embedding, self._logits = nn.Embedding(embeddings, 2), logits

    def hidden(self, ids_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        self._embedding(ids_BS)
        return super().hidden(ids_BS.clamp(max=VOCAB - 1), lengths_B)

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return super().head(hidden_NH)[:, : self._logits]


@pytest.mark.parametrize(
    ("embeddings", "logits", "mask", "said"),
    [
        (VOCAB, VOCAB, 40, r"its hidden raised IndexError .* ids up to 40; it needs .* mask_token_id \(40\)"),
        (41, VOCAB, 40, rf"its head returns logits of {VOCAB} tokens, needs more than mask_token_id \(40\)"),
        (VOCAB, 1, 1, r"its head returns logits of 1 tokens, needs more than mask_token_id \(1\)"),
        (3, VOCAB, 1, r"its hidden raised IndexError .* needs an embedding for each id of the prompts"),
    ],
)
def test_a_policy_of_ones_own_without_a_row_for_an_id_is_one_sentence(
    embeddings: int, logits: int, mask: int, said: str
):
    prompts = encode_prompts([{"prompt": "01"}, {"prompt": "0"}], tokenizer(), uids=[1, 2])
    with pytest.raises(ModelError, match=said):
        generate(Short(embeddings, logits, mask), prompts, Unmasking(3), completion_length=3)
    assert len(generate(Short(41, 41, 1), prompts, Unmasking(3), completion_length=3)) == 2


@pytest.mark.parametrize("positions", range(2, 9))
def test_a_model_of_few_positions_is_a_policy_and_its_rows_are_independent(positions: int):
    small = PolicyConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    module = tiny_policy(small, vocab_size=len(tokenizer()), max_length=positions, seed=0)
    model = as_diffusion_model(module, tokenizer())
    assert model.respects_padding is (positions > 2)  # with two, a padded row would be one token
    prompts = encode_prompts([{"prompt": "1"}, {"prompt": "2"}], tokenizer(), uids=range(2))
    rollout = generate(model, prompts, Unmasking(positions - 1), completion_length=positions - 1, seed=0)
    assert (rollout.token_ids >= 0).all()
    assert all(finding.passed is not False for finding in probe(model, tokenizer()) if finding.name != "mask token")


def test_a_model_of_one_position_says_so():
    small = PolicyConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match="it has 1 position, needs at least 2"):
        as_diffusion_model(tiny_policy(small, vocab_size=len(tokenizer()), max_length=1, seed=0), tokenizer())
