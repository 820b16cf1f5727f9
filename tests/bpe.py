"""A byte-level BPE tokenizer, trained on a few texts in a moment."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "so <answer>\\boxed{\\frac{11}{7}}</answer>",
    "\u7b54\u6848\u662f\u4e03 \U0001f600 caf\u00e9",
    "1234 3412 2143 4321",
] * 4


def bpe(vocab: int = 300, texts: list[str] = TEXTS) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<mask>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=core, pad_token="<pad>", mask_token="<mask>", eos_token="<eos>")
