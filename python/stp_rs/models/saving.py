"""Writing a policy's module into a folder and reading it back: of transformers, with adapters, or one's own.

A folder also says, in `stp_policy.json`, how its policy was opened: so that an adapter finds its base again, and code
from a hub that has changed since is found out.
"""

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers.utils import logging

from stp_rs.errors import CheckpointError, ModelError
from stp_rs.models.base import is_sharded
from stp_rs.models.sharding import fill

WEIGHTS = "model.safetensors"
POLICY = "stp_policy.json"


def save_module(module: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a module into a folder: by its `save_pretrained`, or its state dict as safetensors where it has none.

    `weights` are the whole ones of a module whose weights are shared out over processes.
    """
    if callable(getattr(module, "save_pretrained", None)):
        with _without_bars():
            module.save_pretrained(folder, **_state_to_save(module, weights))
    elif weights is not None:
        save_file({name: value.clone() for name, value in weights.items()}, str(folder / WEIGHTS))
    else:
        save_model(module, str(folder / WEIGHTS))
    opened = getattr(module, "_stp_opened", None)
    if opened is not None:
        (folder / POLICY).write_text(json.dumps(opened, indent=2) + "\n", encoding="utf-8")


def _state_to_save(module: Any, weights: Mapping[str, torch.Tensor] | None) -> dict[str, Any]:
    """Return the argument of save_pretrained for weights that are given, or for a part that has two names; else none.

    LLaDA with `weight_tying` calls its embedding its head too, and tells nobody: transformers then refuses to save what
    it takes for two weights in one memory. It is tied again when the model is opened.
    """
    if not isinstance(module, nn.Module):  # it has a save_pretrained of its own, and no parts to look at
        return {} if weights is None else {"state_dict": dict(weights)}
    first = {id(part): name for name, part in module.named_modules()}
    again = tuple(f"{n}." for n, part in module.named_modules(remove_duplicate=False) if first[id(part)] != n)
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    repeated = not hasattr(module, "peft_config") and any(name.startswith(again) for name in names)
    if weights is None and not repeated:
        return {}
    state = dict(module.state_dict() if weights is None else weights)
    return {"state_dict": {n: value for n, value in state.items() if not (repeated and n.startswith(again))}}


def load_module(module: Any, folder: Path) -> None:
    """Put the weights that `save_module` wrote into a module; of a peft model, its adapters'.

    Raises:
        CheckpointError: they are missing, cannot be read or belong to another module.
    """
    try:
        if is_sharded(module):
            _load_shared_out(module, folder)
        elif (folder / "adapter_config.json").is_file():
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(module, load_peft_weights(str(folder), device="cpu"))
        elif callable(getattr(type(module), "from_pretrained", None)):
            module.load_state_dict(type(module).from_pretrained(folder).state_dict())
        else:
            load_model(module, str(folder / WEIGHTS))
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {error}") from error


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Leave out transformers' bar of the shards: a run has a bar of its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_shared_out(module: Any, folder: Path) -> None:
    """Put whole weights into a module whose weights are shared out over processes."""
    kind: Any = next(k for k in type(module).__mro__ if not k.__name__.startswith("FSDP"))
    if (folder / "adapter_config.json").is_file():
        from peft import load_peft_weights

        stored = load_peft_weights(str(folder), device="cpu")
        names = {name: name.replace(f".{module.active_adapter}", "") for name in module.state_dict()}
        values = {name: stored[short] for name, short in names.items() if short in stored}
        if len(values) < len(stored):
            raise RuntimeError(f"{len(stored) - len(values)} of its adapters' weights have no place in the model")
    elif callable(getattr(kind, "from_pretrained", None)):
        values = kind.from_pretrained(folder).state_dict()
    else:
        values = load_file(folder / WEIGHTS)
    missing = fill(module, values)
    if missing and not (folder / "adapter_config.json").is_file():
        raise RuntimeError(f"it has no {missing[0]}")


def check_savable(module: nn.Module, tokenizer: Any = None) -> None:
    """Refuse what a checkpoint could not hold, before anything is trained.

    Raises:
        ModelError: the module has state that is no tensor, or the tokenizer cannot be written.
    """
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise ModelError(
            f"processing_class: {type(tokenizer).__name__} has no save_pretrained(folder), which checkpoints call"
        )
    if callable(getattr(module, "save_pretrained", None)):
        return
    others = [name for name, value in module.state_dict().items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(
            f"{type(module).__name__}: its state dict holds {others[0]!r}, which is no tensor, so a checkpoint cannot "
            "keep it; hold it as a buffer, or give the module save_pretrained and from_pretrained"
        )


def remember(module: nn.Module, **how: Any) -> None:
    """Keep with a module how it was opened; its checkpoints store that."""
    module._stp_opened = {**how, "code": code_hash(module)}  # type: ignore[assignment] # a plain note on the module


def opened_as(folder: Path) -> dict[str, Any]:
    """Return how the policy of a folder was opened, empty where it does not say."""
    try:
        noted: Any = json.loads((folder / POLICY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def code_hash(module: nn.Module) -> str:
    """Return a hash of the modelling code that came with a checkpoint, empty for code of an installed library."""
    files = set()
    for part in module.modules():
        for kind in type(part).__mro__:
            if kind.__module__.startswith("transformers_modules."):
                files.add(inspect.getsourcefile(kind))
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]
