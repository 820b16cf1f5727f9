"""Cheaper passes of the same policy: compiled blocks, adapters cast once, adapters merged or switched off.

None of it changes a parameter: what is swapped for the length of a `with` block is put back as the very same tensor.
What it changes in the numbers is said at each function and tested in `tests/unit/test_acceleration.py`.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stp_rs.models.base import DiffusionModel, device_of, free_bytes, is_sharded

_LOG = logging.getLogger(__name__)

RECOMPILES = 64
"""Variants of a block that are kept: with and without gradient, with and without padding, adapters on and off, one row
or more."""


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the layers that a network repeats: the members, all of one class, of its largest such `ModuleList`."""
    best: list[nn.Module] = []
    most = 0
    for part in module.modules():
        if not isinstance(part, nn.ModuleList) or len({type(member) for member in part}) != 1:
            continue
        size = sum(p.numel() for p in part.parameters())
        if size > most:
            best, most = list(part), size
    return best


def compile_blocks(
    module: nn.Module, *, backend: str | Callable[..., Any] = "inductor", probe: Callable[[], object] | None = None
) -> int:
    """Compile a network's blocks one by one, in place, and return how many; 0 where it stays as it was.

    All blocks share one compiled graph, dynamic in batch and width, so that a batch whose rows leave is not compiled
    anew. Parameters, names and checkpoints stay as they are. Compiled and plain blocks round differently, so whoever
    samples with compiled blocks must score with them too: both use the module, so both do.

    Args:
        module: the policy's network, adapters included.
        backend: as torch.compile takes it.
        probe: runs a small forward: the first call compiles. Where it fails the blocks are put back, with one line of
            log.
    """
    blocks = repeated_blocks(module)
    if not blocks:
        _LOG.warning("no repeated blocks were found in %s: its passes run uncompiled", type(module).__name__)
        return 0
    config = cast(Any, torch)._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(RECOMPILES, getattr(config, name)))
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    if probe is None:
        return len(blocks)
    try:
        probe()
    except Exception as error:  # a compiler may be missing, or may not know an operation: whatever it raises
        uncompile_blocks(module)
        _LOG.warning("the blocks could not be compiled and run as they are: %s", str(error).splitlines()[0][:200])
        return 0
    return len(blocks)


LARGE = 500_000_000
"""Parameters from which compiling pays for itself within a few steps."""


def wants_compiled(module: nn.Module, choice: str) -> bool:
    """Return whether `stp_compile` asks for a network's blocks to be compiled: `auto` does for large ones on CUDA."""
    if choice != "auto":
        return choice == "blocks"
    parameters = list(module.parameters())
    return bool(parameters) and parameters[0].is_cuda and sum(p.numel() for p in parameters) >= LARGE


def first_pass(model: DiffusionModel) -> Tensor:
    """Return the hidden states of two short canvases: a pass that makes what is compiled on demand."""
    ids_BS = torch.full((2, 9), model.mask_token_id, device=device_of(model))
    with adapters_ready(model.module):
        return model.hidden(ids_BS, None)


def uncompile_blocks(module: nn.Module) -> None:
    """Run the blocks as they are again."""
    for block in repeated_blocks(module):
        block._compiled_call_impl = None


@contextlib.contextmanager
def blocks_as_they_are(module: nn.Module) -> Iterator[None]:
    """Run passes with the blocks uncompiled, and put back what was compiled."""
    blocks = repeated_blocks(module)
    kept = [block._compiled_call_impl for block in blocks]
    try:
        for block in blocks:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in zip(blocks, kept, strict=True):
            block._compiled_call_impl = call


def is_compiled(module: nn.Module) -> bool:
    """Return whether the blocks of a network are compiled."""
    return any(block._compiled_call_impl is not None for block in repeated_blocks(module))


def adapter_layers(module: nn.Module) -> list[Any]:
    """Return the LoRA layers of peft in a network: those with `lora_A`, `lora_B` and the layer that they adapt."""
    return [m for m in module.modules() if hasattr(m, "lora_A") and hasattr(m, "lora_B") and hasattr(m, "base_layer")]


@contextlib.contextmanager
def adapters_cast(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold the adapters' weights in another type, for passes without gradient.

    Under autocast a matrix product in `dtype` is made of these very numbers, so that no bit of a pass changes; but the
    cast of weights and the one of activations to the adapters' fp32 and back, on every linear layer of every forward,
    are saved.

    Args:
        module: the policy's network; one without adapters stays as it is.
        dtype: the one that autocast computes in.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("adapters_cast: got a pass with gradient, needs torch.no_grad: its leaf would be the cast")
    linears = [
        linear
        for layer in adapter_layers(module)
        for part in (layer.lora_A, layer.lora_B)
        for linear in part.values()
        if linear.weight.dtype != dtype
    ]
    kept = [linear.weight for linear in linears]
    try:
        for linear in linears:  # a parameter of its own: compiled blocks do not look at the type of one they know
            linear.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight = weight


@contextlib.contextmanager
def adapters_ready(module: nn.Module) -> Iterator[None]:
    """Run passes without gradient with the adapters in the type that autocast computes in, where it is on."""
    device = next(module.parameters()).device.type
    with torch.no_grad():
        if not is_sharded(module) and torch.is_autocast_enabled(device):
            with adapters_cast(module, torch.get_autocast_dtype(device)):
                yield
        else:
            yield


def set_adapter_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the adapters' weights in a type; before an optimiser is made of them."""
    for layer in adapter_layers(module):
        for part in (layer.lora_A, layer.lora_B):
            part.to(dtype)


def has_other_parts(module: nn.Module) -> bool:
    """Return whether peft keeps trained copies of whole modules, which no LoRA layer switches off."""
    return any(type(part).__name__ in _OTHER_PARTS for part in module.modules())


_OTHER_PARTS = ("ModulesToSaveWrapper", "TrainableTokensLayer")


@contextlib.contextmanager
def adapters_off(module: nn.Module, layers: Sequence[Any] | None = None) -> Iterator[None]:
    """Run the network without its adapters: the policy before RL.

    As peft's `disable_adapter`, which walks every module twice and switches the gradients of all adapters: here one
    flag of each adapted layer is set.

    Args:
        module: the policy's network.
        layers: its `adapter_layers`, where the caller has them already.
    """
    if layers is None:
        layers = [] if has_other_parts(module) else adapter_layers(module)
    if not layers:
        with cast(Any, module).disable_adapter():
            yield
        return
    kept = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, value in zip(layers, kept, strict=True):
            layer._disable_adapters = value


@contextlib.contextmanager
def adapters_merged(module: nn.Module) -> Iterator[None]:
    """Run the network with its adapters added to the weights that they adapt, for passes without gradient.

    The weights before are kept aside and put back, the same tensors: no rounding adds up over cycles. They stay on the
    device where the merged ones fit beside them, else on the host. A forward costs what the base model's does, but a
    merged weight is rounded to the base's type: in bf16 a change of less than 1/512 of a weight is lost, so that what
    samples is not exactly what is scored. Layers with more than plain LoRA (DoRA, a bias in B) keep their adapters.

    Args:
        module: the policy's network.
    """
    layers = [layer for layer in adapter_layers(module) if _mergeable(layer)]
    need = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    device = next(module.parameters()).device
    host = need > 0.9 * free_bytes(device)  # some is left for the passes
    kept: list[tuple[Any, Tensor, bool]] = []
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # the sum is made in fp32
            for layer in layers:
                weight = layer.get_base_layer().weight
                kept.append((layer, weight.data.to("cpu", copy=True) if host else weight.data, layer._disable_adapters))
                total = weight.data.float()
                for name in layer.active_adapters:
                    total = total + layer.get_delta_weight(name).float()
                if host:
                    weight.data.copy_(total)
                else:
                    weight.data = total.to(weight.dtype)
                layer._disable_adapters = True
        yield
    finally:
        for layer, data, disabled in kept:
            weight = layer.get_base_layer().weight
            if host:
                weight.data.copy_(data)
            else:
                weight.data = data
            layer._disable_adapters = disabled


def _mergeable(layer: Any) -> bool:
    """Return whether a layer is a plain linear one with plain LoRA that is switched on."""
    plain = isinstance(layer.get_base_layer(), nn.Linear) and not getattr(layer, "lora_variant", None)
    bias = any(getattr(linear, "bias", None) is not None for linear in layer.lora_B.values())
    return plain and not bias and not layer._disable_adapters and all(a in layer.lora_A for a in layer.active_adapters)
