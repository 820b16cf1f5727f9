"""What many tests share: a tiny random BERT, a policy that is a table, and a trainer of a second or less."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM
from transformers.trainer_callback import PrinterCallback

from stp_rs import STPConfig, STPTrainer
from stp_rs.config.sections import PolicyConfig
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.train.callbacks import RolloutCallback
from stp_rs.train.trainer import StepResult

ALPHABET = "0123[]"
LENGTH = 6
"""Tokens of a completion in the trainer's tests."""
ROWS = [{"prompt": text} for text in ("0", "12", "3[0", "1]", "22", "0123")]
SMALL: dict[str, Any] = {
    "pruning": "none",
    "max_completion_length": LENGTH,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "stp_rollouts": 4,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "adam_beta2": 0.99,
    "optim": "adamw_torch",
    "seed": 0,
    "save_strategy": "no",
    "logging_steps": 2,
    "disable_tqdm": True,
}


def record(
    prompt_ids: Any, prompt_length: Any, token_ids: Any, unmask_step: Any, uid: Any, logprob: Any = None
) -> Rollout:
    """Return the record of completions whose rewards nobody reads."""
    rows = len(prompt_length)
    prompts = PromptBatch([{}] * rows, prompt_ids, prompt_length, uid, np.arange(rows))
    made = Rollout.of(prompts, token_ids, unmask_step)
    return made if logprob is None else made.replaced(logprob=logprob)


@cache
def tokenizer() -> Any:
    """Return the character tokenizer of the tests: ids 0 pad, 1 mask, 2 end of text, 3 unknown, 4.. the alphabet."""
    return character_tokenizer(ALPHABET)


def tiny(*, seed: int = 0, dropout: float = 0.0, layers: int = 1) -> MaskedLMAdapter:
    """Return a random policy of hidden size 16; the same weights with and without dropout."""
    size = PolicyConfig(hidden_size=16, num_hidden_layers=layers, num_attention_heads=2)
    module = tiny_policy(size, vocab_size=len(tokenizer()), max_length=32, seed=seed)
    if dropout:
        weights, config = module.state_dict(), module.config
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        with torch.random.fork_rng(devices=[]):
            module = BertForMaskedLM(config)
        module.load_state_dict(weights)
    module.train()
    return MaskedLMAdapter(module, tokenizer())


class Table(nn.Module):
    """The numbers of `Tabular`, as a module with parameters."""

    def __init__(self, own: Tensor, coupling: Tensor) -> None:
        super().__init__()
        self.own = nn.Parameter(own)
        self.coupling = nn.Parameter(coupling)


class Tabular:
    """A `DiffusionModel` without a network: logits at p are own[p] + (1 + p / 8) * sum_q coupling[q, token at q].

    Positions are canvas positions. Sums run position by position, so a row has the same bits in every batch.
    """

    eos_token_id = 2

    def __init__(self, *, vocab: int, width: int, seed: int, mask: int = 1, pad: int = 0, shift: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        own = torch.randn(width, vocab, generator=generator)
        coupling = torch.randn(width, vocab, vocab, generator=generator) / 2
        self.module = Table(own, coupling)
        self.mask_token_id, self.pad_token_id = mask, pad
        self.logit_shift = shift
        self.respects_padding = True
        self.head_rows = 0

    @property
    def own(self) -> Tensor:
        """The logits of each position before its context."""
        return self.module.own

    @property
    def coupling(self) -> Tensor:
        """What each visible token adds to every position."""
        return self.module.coupling

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return the logits [B, S, V]."""
        rows, width = ids_BS.shape
        context = torch.zeros(rows, self.own.shape[1])
        for q in range(width):
            seen = self.coupling[q, ids_BS[:, q]]
            if lengths_B is not None and self.respects_padding:
                seen = torch.where((lengths_B > q)[:, None], seen, 0.0)
            context = context + seen
        share = 1 + torch.arange(width) / 8
        return self.own[:width] + share[:, None] * context[:, None, :]

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return its argument: the hidden states are logits. Counts the rows asked for."""
        self.head_rows += hidden_NH.shape[0]
        return hidden_NH


def ones(completions: Sequence[str], **_columns: Any) -> list[float]:
    """Reward the share of ones."""
    return [text.count("1") / LENGTH for text in completions]


def trainer(
    run: Path,
    model: Any = None,
    reward: Callable[..., Any] | list[Any] = ones,
    *,
    priors: Sequence[Any] = (),
    rows: Sequence[dict[str, Any]] = ROWS,
    **options: Any,
) -> STPTrainer:
    """Return a trainer of the tiny policy on six ragged prompts; `options` over `SMALL`."""
    chosen = {**SMALL, "output_dir": str(run), **options}
    if "max_steps" in options:
        del chosen["stp_rollouts"]
    made = STPTrainer(model or tiny(), reward, STPConfig(**chosen), rows, processing_class=tokenizer(), priors=priors)
    made.remove_callback(PrinterCallback)
    made.prepare()
    return made


class Watch(RolloutCallback):
    """Calls a function with the result of each rollout batch."""

    def __init__(self, heard: Callable[[StepResult], Any]) -> None:
        self.heard = heard

    def on_rollout_end(self, args: Any, state: Any, control: Any, result: StepResult) -> None:
        self.heard(result)


def resumed(made: STPTrainer) -> STPTrainer:
    """Return a trainer, gone on from the newest checkpoint of its folder."""
    made.prepare(made.find_checkpoint(True))
    return made
