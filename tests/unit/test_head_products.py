"""How often an update multiplies with the head's weights, what it keeps for that, and that its gradients are exact."""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stp_rs import SamplingParams
from stp_rs.models import base
from stp_rs.objective import head
from tests.devices import DEVICES, MARKS

pytestmark = MARKS
VOCAB, HIDDEN, ROWS = 37, 16, 11


class Capped(nn.Module):
    """Logits that a tanh bounds, as Gemma's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 5.0 * torch.tanh(self.inner(hidden) / 5.0)


class Tied(nn.Module):
    """The embedding's own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.embedding.weight)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(HIDDEN, VOCAB, bias=False),
    "bias": lambda: nn.Linear(HIDDEN, VOCAB),
    "capped": Capped,
    "tied": Tied,
    "transformed": lambda: nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.LayerNorm(HIDDEN), Tied()),
}


class Headed:
    """A policy of which only the head is called; a layer before it is trained."""

    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = 1, 0, 2, 0, True

    def __init__(self, name: str, *, trained: bool = False, dtype: torch.dtype = torch.float32) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = nn.ModuleDict({"body": nn.Linear(HIDDEN, HIDDEN), "head": HEADS[name]()}).to(dtype)
        self.module["head"].requires_grad_(trained)
        self.module.config = SimpleNamespace(vocab_size=VOCAB)

    def hidden(self, ids_BS: torch.Tensor, _lengths_B: torch.Tensor | None) -> torch.Tensor:
        raise AssertionError("only the head is called")

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.module["head"](hidden_NH)

    def to(self, place: torch.device | torch.dtype) -> "Headed":
        made = copy.deepcopy(self)
        made.module.to(place)
        return made


class Products(TorchDispatchMode):
    """Counts the matrix products one of whose sizes is the vocabulary's."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm"):
            left, right = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            (n, k), m = left.shape, right.shape[1]
            if VOCAB in (n, k, m):
                self.rows += n * k * m / (VOCAB * HIDDEN)
        return func(*args, **(kwargs or {}))


def inputs(model: Headed, device: torch.device) -> tuple[Any, ...]:
    """Return (hidden states before the trained layer, targets, law, places)."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(2, VOCAB, (ROWS,), generator=draw)
    allowed = torch.rand((4, VOCAB), generator=draw) < 0.8
    allowed[:, targets] = True
    law = SamplingParams(0.7, allowed=allowed.to(device))
    states = torch.randn((ROWS, HIDDEN), generator=draw).to(device, next(model.module.parameters()).dtype)
    return states, targets.to(device), law, (torch.arange(ROWS, device=device), 4)


def gradients(model: Headed, device: torch.device, entropies: head.Entropies = "none") -> list[torch.Tensor]:
    """Return numbers, and the gradients of all that is trained, of weights that are not alike."""
    states, targets, law, places = inputs(model, device)
    model.module.zero_grad()
    hidden = model.module["body"](states)
    found = head.head_logprobs(model, hidden, targets, law, places, None, entropies)
    weights = torch.linspace(-1, 2, ROWS, device=device, dtype=found.dtype)
    (found[:, 0] * weights).sum().backward()
    return [found.detach(), *(p.grad.clone() for p in model.module.parameters() if p.grad is not None)]


def plainly(model: Headed, device: torch.device, entropies: head.Entropies = "none") -> list[torch.Tensor]:
    """Return the same through a log-softmax that keeps every logit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "_is_trained", lambda *_: True)
        patch.setattr(head, "head_rows", lambda _model: ROWS)
        return gradients(model, device, entropies)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.mark.parametrize("rows", [ROWS, 3])
@pytest.mark.parametrize("name", HEADS)
def test_in_double_precision_the_slopes_are_exact(
    name: str, rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    def exact(logits: torch.Tensor, mask: int, allowed: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(VOCAB, device=device) == mask, -math.inf).masked_fill(
            ~allowed, -math.inf
        )

    monkeypatch.setattr(head, "candidate_logits", exact)  # the law itself is in single precision
    monkeypatch.setattr(head, "head_rows", lambda _model: rows)
    model = Headed(name, dtype=torch.float64).to(device)
    made = gradients(model, device)
    truth = plainly(model, device)
    assert len(made) == len(truth) == 3
    for ours, theirs in zip(made, truth, strict=True):
        assert ours.dtype == torch.float64
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", HEADS)
def test_in_bf16_slopes_are_as_near_to_the_truth_as_kept_logits(name: str, device: torch.device):
    """A slope is rounded once, and so is the gradient of a kept logit: neither is the nearer one."""
    model = Headed(name, dtype=torch.bfloat16).to(device)
    truth = plainly(model.to(torch.float32), device)
    ours, kept = gradients(model, device), plainly(model, device)
    assert torch.equal(ours[0], kept[0]), "the numbers are the same bits"
    for made, plain, true in zip(ours[1:], kept[1:], truth[1:], strict=True):
        size = true.abs().max()
        gaps = [float((found.float() - true).abs().max() / size) for found in (made, plain)]
        assert gaps[0] <= 2 * gaps[1] + 2**-7, gaps


def test_under_autocast_numbers_are_the_same_bits(device: torch.device):
    model = Headed("linear").to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        ours, kept = gradients(model, device), plainly(model, device)
    assert torch.equal(ours[0], kept[0])
    assert torch.allclose(ours[1], kept[1], rtol=2**-6, atol=2**-6 * float(kept[1].abs().max()))


@pytest.mark.parametrize(
    ("options", "rows", "forward", "backward"),
    [
        ({}, ROWS, 2, 0),
        ({}, 3, 2, 0),
        ({"entropies": "numbers"}, 3, 2, 0),
        ({"trained": True}, ROWS, 1, 2),
        ({"trained": True}, 3, 1, 3),
        ({"entropies": "gradient"}, ROWS, 1, 1),
        ({"entropies": "gradient"}, 3, 1, 2),
        ({"shared": True}, ROWS, 1, 1),
        ({"shared": True}, 3, 1, 2),
        ({"graded": False}, 3, 1, 0),
    ],
    ids=lambda value: "-".join(value) or "frozen" if isinstance(value, dict) else str(value),
)
def test_products_with_the_heads_weights(
    options: dict[str, Any], rows: int, forward: int, backward: int, monkeypatch: pytest.MonkeyPatch
):
    """Counted in rows that are multiplied: once each is one product, however many chunks it comes in."""
    monkeypatch.setattr(head, "head_rows", lambda _model: rows)
    cpu = torch.device("cpu")
    model = Headed("linear", trained=options.get("trained", False))
    states, targets, law, places = inputs(model, cpu)
    own = np.arange(ROWS) if options.get("shared") else None
    hidden = model.module["body"](states)
    with torch.set_grad_enabled(options.get("graded", True)), Products() as made:
        found = head.head_logprobs(model, hidden, targets, law, places, own, options.get("entropies", "none"))
    with Products() as after:
        if found.requires_grad:
            found.sum().backward()
    assert made.rows == pytest.approx(forward * ROWS)
    assert after.rows == pytest.approx(backward * ROWS)


@pytest.mark.parametrize("rows", [ROWS, 3])
def test_of_a_head_that_is_not_trained_no_logit_is_kept(rows: int, monkeypatch: pytest.MonkeyPatch):
    """What outlives the forward pass is one slope per row, in the head's type."""
    monkeypatch.setattr(head, "head_rows", lambda _model: rows)
    model = Headed("linear")
    states, targets, law, places = inputs(model, torch.device("cpu"))
    hidden = model.module["body"](states)
    found = head.head_logprobs(model, hidden, targets, law, places)
    nodes, seen, kept = [found.grad_fn], set(), 0
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or node is hidden.grad_fn:
            continue
        seen.add(node)
        kept += sum(tensor.nbytes for tensor in getattr(node, "saved_tensors", ()))
        nodes += [parent for parent, _ in node.next_functions]
    assert kept == ROWS * HIDDEN * 4


def test_a_token_that_is_impossible_has_no_slope():
    model = Headed("linear")
    states, targets, law, places = inputs(model, torch.device("cpu"))
    targets[3] = model.mask_token_id
    hidden = states.requires_grad_()
    found = head.head_logprobs(model, hidden, targets, law, places)
    assert found[3, 0] == -math.inf
    ours = torch.autograd.grad(found[:, 0].masked_fill(found[:, 0].isinf(), 0.0).sum(), hidden)[0]
    assert torch.isfinite(ours).all()
    assert not ours[3].any()


def test_chunks_follow_the_vocabulary(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "HEAD_ELEMENTS", 3 * VOCAB)
    assert base.head_rows(Headed("linear")) == 3
