"""Stand-ins for families of models whose code comes with them: own code, their interfaces and quirks, few parameters.

`write` makes a folder as the hub has it: a configuration with an `auto_map`, code, weights and a tokenizer.
"""

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stp_rs.models.saving import save_module
from tests.fixtures import ALPHABET


@dataclass(frozen=True)
class StandIn:
    """Where a family's stand-in is, and what its tokenizer has."""

    file: str
    name: str
    auto_class: str
    mask: str
    ends: tuple[str, ...]
    names_mask: bool = True
    """Whether the tokenizer itself says which token is the mask (LLaDA's and SDAR's do not)."""


STAND_INS = {
    "llada": StandIn("llada", "StandInLLaDA", "AutoModel", "<|mdm_mask|>", ("<|endoftext|>", "<|eot_id|>"), False),
    "dream": StandIn("dream", "StandInDream", "AutoModel", "<|mask|>", ("<|endoftext|>", "<|im_end|>")),
    "llada_moe": StandIn(
        "lladamoe", "StandInLLaDAMoE", "AutoModelForCausalLM", "<|mask|>", ("<|endoftext|>", "<|role_end|>"), False
    ),
    "llada2": StandIn("llada2", "StandInLLaDA2", "AutoModelForCausalLM", "<|mask|>", ("<|endoftext|>", "<|role_end|>")),
    "sdar": StandIn("sdar", "StandInSDAR", "AutoModelForCausalLM", "<|MASK|>", ("<|endoftext|>", "<|im_end|>"), False),
    "a2d": StandIn("a2d", "StandInA2D", "AutoModelForMaskedLM", "<|mask|>", ("<|im_end|>",), False),
}


def words(stand_in: StandIn, alphabet: str = ALPHABET) -> Any:
    """Return a tokenizer of characters with a family's special tokens: the first end is its end of text and pads."""
    special = [*stand_in.ends, stand_in.mask, "<|unk|>"]
    vocab = {token: i for i, token in enumerate([*special, *dict.fromkeys(alphabet)])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    named = {"mask_token": stand_in.mask} if stand_in.names_mask else {}
    made: Any = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<|unk|>", eos_token=stand_in.ends[0], **named)
    made.add_special_tokens({"additional_special_tokens": [*stand_in.ends[1:], *([] if named else [stand_in.mask])]})
    return made


def write(family: str, folder: Path, *, seed: int = 0, alphabet: str = ALPHABET, **options: Any) -> Path:
    """Write a family's stand-in into a folder, as `stp_rs.load` opens it with `trust_remote_code=True`."""
    stand_in = STAND_INS[family]
    code = importlib.import_module(f"tests.standins.modeling_{stand_in.file}")
    tokenizer = words(stand_in, alphabet)
    config = getattr(code, f"{stand_in.name}Config")(vocab_size=len(tokenizer), **options)
    config.mask_token_id = tokenizer.convert_tokens_to_ids(stand_in.mask)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(code, stand_in.name)(config)
    model.config.auto_map = {
        "AutoConfig": f"modeling_{stand_in.file}.{stand_in.name}Config",
        stand_in.auto_class: f"modeling_{stand_in.file}.{stand_in.name}",
    }
    save_module(model, folder)
    tokenizer.save_pretrained(folder)
    here = Path(__file__).parent
    for name in (f"modeling_{stand_in.file}.py", "parts.py", *([] if family == "llada" else ["common.py"])):
        shutil.copy(here / name, folder / name)
    return folder
