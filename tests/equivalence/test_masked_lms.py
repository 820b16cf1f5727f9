"""Every masked LM that the installed transformers lists is a policy, or refused in one sentence."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import stp_rs
from stp_rs.errors import ModelError
from stp_rs.models.base import passes_without_dropout
from stp_rs.models.probes import probe
from tests.fixtures import tokenizer

CLASSES = dict(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
"""Names of classes by `model_type`: their modules are imported when their turn comes."""
# what each calls a size, so that one table makes all of them small
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embedding_size", "dim", "d_model", "emb_dim", "entity_emb_size"), 32),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "feed_forward_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_2d_position_embeddings"), 64),
    **{"vocab_size": len(tokenizer()), "entity_vocab_size": 8, "head_dim": 16, "attention_head_size": 16},
    **{"pronunciation_vocab_size": 8, "shape_vocab_size": 8, "attention_window": 4, "input_embedding_size": 32},
    **{"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "intra_bottleneck_size": 32},
    **{"pad_token_id": 0, "mask_token_id": 1, "mask_index": 1, "eos_token_id": 2},
    **dict.fromkeys(("bos_token_id", "cls_token_id", "sep_token_id"), None),
}
REFUSED = {
    "funnel": "cannot be called as a masked LM",
    "mra": "its attention does nothing for short canvases here",
    "reformer": "its attention draws random buckets",
    "perceiver": "no output head was found",
    "xmod": r"Input language unknown. Please call `XmodPreTrainedModel.set_default_language\(\)`",
}
"""What is refused, besides models with an encoder and a decoder."""
ANOTHER_KIND = {"modernvbert": "a model of images", "ultravbert": "another of images", "wav2vec2": "a model of sound"}


def small(kind: str) -> Any:
    """Return a small configuration: those sizes that it has."""
    config: Any = CONFIG_MAPPING[kind]
    named, own = set(inspect.signature(config.__init__).parameters), config()
    sizes = {name: value for name, value in SIZES.items() if name in named or hasattr(own, name)}
    if "block_sizes" in named:
        sizes["block_sizes"] = [1, 1, 1]
        del sizes["num_hidden_layers"]
    try:
        return config(**sizes)
    except (TypeError, ValueError):  # some names are properties
        return config(**{name: value for name, value in sizes.items() if name in named})


def random_model(kind: str) -> Any:
    """Return a model whose weights are large enough that every part of it shows in the logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, CLASSES[kind])(small(kind)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.filterwarnings("ignore")  # what each code warns of at these sizes is its own
@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in ANOTHER_KIND])
def test_each_is_a_policy_or_one_sentence(kind: str, tmp_path: Path):
    try:
        model = random_model(kind)
    except ImportError as error:  # code of a library that is not installed
        pytest.skip(" ".join(str(error).split())[:80])
    if kind in REFUSED or model.config.is_encoder_decoder:
        with pytest.raises(ModelError, match=REFUSED.get(kind, "it has an encoder and a causal decoder")) as refusal:
            stp_rs.as_diffusion_model(model, tokenizer())
        assert "\n" not in str(refusal.value)
        return
    policy = stp_rs.as_diffusion_model(model, tokenizer())
    found = {finding.name: finding.passed for finding in probe(policy, tokenizer())}
    assert (found["head"], found["attention"], found["padding"]) == (True, True, policy.respects_padding)
    rows = [{"prompt": "012"}, {"prompt": "3[20]1"}, {"prompt": "0"}]
    prompts = stp_rs.encode_prompts(rows, tokenizer(), uids=[4, 9, 2]).repeat(2)
    rollout = stp_rs.generate(policy, prompts, stp_rs.Unmasking(3), completion_length=6, seed=3)
    assert np.allclose(stp_rs.replay_logprobs(policy, rollout), rollout.logprob, atol=1e-4)
    masks = stp_rs.draw_masks(stp_rs.Design("cover", 1), rollout, seed=0)
    with passes_without_dropout(policy.module):
        stp_rs.token_elbo(policy, rollout, masks).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy._head[-1].parameters() if p.numel())
    longest(policy)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    again, _ = stp_rs.load(tmp_path)
    ids = prompts.prompt_ids[:1, :4]
    with torch.no_grad():
        logits = [p.head(p.hidden(torch.from_numpy(ids), None)) for p in (again, policy)]
    assert torch.equal(*logits)


def longest(policy: Any) -> None:
    """Hold the context length: canvases of so many tokens go through, and there is no room for one more."""
    if not policy.context_length:
        return  # positions are relative
    with torch.no_grad():
        policy.hidden(torch.full((1, policy.context_length), 5), None)
        tables = [m for n, m in policy.module.named_modules() if n.endswith("embeddings.position_embeddings")]
        if any(getattr(table, "padding_idx", None) is not None for table in tables):
            policy.context_length += 1
            with pytest.raises((IndexError, RuntimeError)):
                policy.hidden(torch.full((1, policy.context_length), 5), None)


def test_the_list_is_not_empty():
    assert {"bert", "roberta", "modernbert", "esm", "deberta-v2"} <= set(CLASSES), transformers.__version__
