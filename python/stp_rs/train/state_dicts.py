"""State dicts of optimisers and schedules as safetensors: tensors as they are, all else as JSON in the header.

Nothing is pickled, so that opening a checkpoint of somebody else runs no code.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stp_rs.errors import CheckpointError

_TREE = "tree"


def write_state_dict(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested mappings, lists and tuples of tensors, numbers, texts and None.

    Raises:
        CheckpointError: something else is in it; the message says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _packed(state, (), tensors)
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen:
            tensors[name] = tensor.clone()  # a file has no two tensors of one memory
        seen.add(memory)
    save_file(tensors, path, metadata={_TREE: json.dumps(tree)})


def read_state_dict(path: Path) -> dict[str, Any]:
    """Return what `write_state_dict` wrote, its tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or is not such a file.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            tree = json.loads(handle.metadata()[_TREE])
            loaded: dict[str, Any] = _unpacked(tree, {name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118 - the handle is no mapping
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    return loaded


def _packed(value: Any, place: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    """Return JSON of a value: what JSON does not have is a mapping with one key, which says its kind."""
    if hasattr(value, "item") and not isinstance(value, torch.Tensor) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of numpy
    packed: Any = value
    if isinstance(value, torch.Tensor):
        packed = {"tensor": _kept("/".join(place), value.detach().contiguous(), tensors)}
    elif isinstance(value, Mapping):
        packed = {"items": [[_key(k, place), _packed(v, (*place, str(k)), tensors)] for k, v in value.items()]}
    elif isinstance(value, list | tuple):
        packed = [_packed(v, (*place, str(i)), tensors) for i, v in enumerate(value)]
        packed = {"tuple": packed} if isinstance(value, tuple) else packed
    elif isinstance(value, float) and not math.isfinite(value):
        packed = {"float": str(value)}
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise CheckpointError(
            f"{'/'.join(place)}: is a {type(value).__name__}, which a checkpoint cannot hold; needs tensors, numbers, "
            "texts, lists and mappings of them"
        )
    return packed


def _kept(name: str, value: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    """Keep a tensor under a free name and return that."""
    while name in tensors:
        name += "_"
    tensors[name] = value
    return name


def _key(key: Any, place: tuple[str, ...]) -> str | int:
    if isinstance(key, str) or type(key) is int:
        return key
    raise CheckpointError(
        f"{'/'.join(place)}: has the key {key!r}, which a checkpoint cannot hold; needs text or a number"
    )


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {k: _unpacked(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(_unpacked(v, tensors) for v in content)
    return float(content)
