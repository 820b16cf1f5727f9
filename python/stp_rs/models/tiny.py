"""The embedded tiny policy: BertForMaskedLM with a small configuration and a character tokenizer.

BERT was the fastest of six masked-LM classes of transformers at this size (docs/adr/0002).
"""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from stp_rs.config.sections import PolicyConfig
from stp_rs.models.base import seeded

SPECIAL = ("[PAD]", "[MASK]", "[EOS]", "[UNK]")


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character of `alphabet`, after [PAD], [MASK], [EOS] and [UNK]."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *dict.fromkeys(alphabet)])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        pad_token="[PAD]",
        mask_token="[MASK]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def tiny_policy(config: PolicyConfig, *, vocab_size: int, max_length: int, seed: int) -> BertForMaskedLM:
    """Return a freshly initialised policy for canvases of up to `max_length` tokens.

    The initialisation is wider than BERT's 0.02, near 1 / sqrt(hidden_size) and at most 0.1: with 0.02 the warm-up of
    a narrow policy stays on a plateau, and so does that of a wide one with 0.1. It is seeded and leaves torch's
    global generator as it was. Dropout is 0.
    """
    bert = BertConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=max_length,
        initializer_range=min(0.1, 0.8 * config.hidden_size**-0.5),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    with seeded(seed):
        return BertForMaskedLM(bert)
