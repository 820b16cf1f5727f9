"""Rollouts in fewer bits: the linear layers of a network's blocks are quantised for the length of a `with` block.

torchao makes the kernels. What samples is then another law than the policy's, so that a ratio must be corrected by the
recorded log-probs. The weights before are kept and put back, the very same tensors.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from stp_rs.errors import ConfigError
from stp_rs.models.acceleration import blocks_as_they_are, repeated_blocks

Precision = Literal["same", "int8", "fp8"]
_RECIPES = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8DynamicActivationFloat8WeightConfig"}
_FP8_CARD = (8, 9)
"""The least compute capability that multiplies in fp8."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that this machine cannot compute in.

    Raises:
        ConfigError: torchao is missing, or the device cannot multiply in fp8.
    """
    if precision == "same":
        return
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CARD
    if precision == "fp8" and not able:
        raise ConfigError(
            f"stp_rollout_precision: got fp8 on {device.type}, needs a CUDA device of compute capability 8.9 or above; "
            "use int8 or same"
        )
    try:
        importlib.import_module("torchao.quantization")
    except ImportError:
        raise ConfigError(
            f"stp_rollout_precision: got {precision}, needs torchao; pip install torchao, or use same"
        ) from None


@contextlib.contextmanager
def rounded(module: nn.Module, precision: Precision) -> Iterator[None]:
    """Run passes without gradient with the blocks' linear layers quantised, uncompiled; adapters stay as they are.

    The quantised weights stand beside those before, so the memory is that of both.
    """
    if precision == "same":
        yield
        return
    make: Any = importlib.import_module("torchao.quantization")
    blocks = repeated_blocks(module)
    layers = [(name, layer) for block in blocks for name, layer in block.named_modules() if type(layer) is nn.Linear]
    layers = [(name, layer) for name, layer in layers if "lora_" not in name]
    kept = [(layer.weight, layer.bias) for _, layer in layers]
    device = next(module.parameters()).device.type
    try:
        with blocks_as_they_are(module):
            for _, layer in layers:
                make.quantize_(layer, getattr(make, _RECIPES[precision])())
                bias: Any = layer.bias
                if bias is not None and torch.is_autocast_enabled(device):  # fp8 adds it in autocast's type only
                    layer.bias = nn.Parameter(bias.to(torch.get_autocast_dtype(device)), requires_grad=False)
            yield
    finally:
        for (_, layer), (weight, bias) in zip(layers, kept, strict=True):
            layer.weight, layer.bias = weight, bias
