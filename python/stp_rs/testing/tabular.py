"""A policy that is a table: explicit joint distributions over all completions, with exact conditionals.

Every log-likelihood, law and gradient of it is a finite sum; the tests and small studies use it.

Shapes: B canvases, L completion length, V vocabulary, Y = V^L completions, N candidates.
"""

import itertools

import torch
from torch import Tensor, nn

from stp_rs.errors import InvalidValueError


class TabularPolicy:
    """A `DiffusionModel` given by logits over all V^L completions; the prompt is ignored.

    Token ids are 0..V-1, the mask is V, the pad (and end of text) V + 1.

    With one row of logits the conditionals of all masks come from one joint distribution. With 2^L rows each set of
    masked positions has its own (row m: position i is masked where bit i is set): conditionals that contradict each
    other, as a network's may. Any masked-diffusion policy whose conditionals are positive is of the second form.

    Args:
        logits: [1, V^L] or [2^L, V^L], completions in lexicographic order.
        vocab_size: V.
        length: L.

    Raises:
        InvalidValueError: another shape.

    Example:
        >>> policy = TabularPolicy(torch.zeros(1, 4), vocab_size=2, length=2)
        >>> policy.log_conditionals(torch.tensor([[2, 0]]))[0].exp().tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """

    logit_shift = 0
    respects_padding = False

    def __init__(self, logits: Tensor, *, vocab_size: int, length: int) -> None:
        if logits.shape not in ((1, vocab_size**length), (1 << length, vocab_size**length)):
            raise InvalidValueError(
                f"logits: got shape {tuple(logits.shape)}, needs [1, {vocab_size**length}] or "
                f"[{1 << length}, {vocab_size**length}] for {vocab_size} tokens at {length} positions"
            )
        self.vocab_size, self.length = vocab_size, length
        self.mask_token_id, self.pad_token_id, self.eos_token_id = vocab_size, vocab_size + 1, vocab_size + 1
        self.logits = nn.Parameter(logits.detach().double().clone())
        self.module: nn.Module = nn.ParameterList([self.logits])
        self.completions_YL = torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))

    def log_conditionals(self, canvas_BL: Tensor) -> Tensor:
        """Return log p(token at i | visible tokens), f64 [B, L, V]; a visible position has its own token."""
        canvas_BL, row_B = torch.unique(canvas_BL, dim=0, return_inverse=True)
        masked_BL = canvas_BL == self.mask_token_id
        fits_BY = (masked_BL[:, None] | (canvas_BL[:, None] == self.completions_YL)).all(-1)
        sets_B = (masked_BL.long() << torch.arange(self.length)).sum(-1) % len(self.logits)
        logits_BY = self.logits[sets_B].masked_fill(~fits_BY, float("-inf"))
        token_YLV = nn.functional.one_hot(self.completions_YL, self.vocab_size).bool()
        chosen_BLVY = logits_BY[:, None, None].masked_fill(~token_YLV.permute(1, 2, 0), float("-inf"))
        return (torch.logsumexp(chosen_BLVY, -1) - torch.logsumexp(logits_BY, -1)[:, None, None])[row_B]

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return the logits of all positions, f64 [B, S, V + 2]: this model's hidden states."""
        del lengths_B  # None: canvases of one call have equal lengths, because pads are not respected
        start = ids_BS.shape[1] - self.length
        table_BLV = self.log_conditionals(ids_BS[:, start:])
        return nn.functional.pad(table_BLV, (0, 2, start, 0), value=float("-inf"))

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits [N, V + 2]: the hidden states themselves."""
        return hidden_NH
