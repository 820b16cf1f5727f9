"""Checkpoints that survive kill -9: everything is written beside its place and renamed into it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from stp_rs.errors import CheckpointError
from stp_rs.models.saving import load_module, save_module
from stp_rs.types import Stored

STATE = "stp_state.json"
"""What a checkpoint keeps of ours: the ledger, and the options that decide the run's numbers."""
TRAINER = "trainer_state.json"
"""What it keeps of transformers'."""
PRIORS = "priors.safetensors"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path; when the block ends well it replaces `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_stored(path: Path, parts: Mapping[str, Stored]) -> None:
    """Write named parts to a safetensors file, atomically."""
    arrays = {f"{part}/{name}": np.ascontiguousarray(a) for part, s in parts.items() for name, a in s.arrays.items()}
    hashes = {part: stored.hashes for part, stored in parts.items()}
    with atomic_file(path) as temporary:
        save_file(arrays, temporary, metadata={"hashes": json.dumps(hashes)})


def read_stored(path: Path) -> dict[str, Stored]:
    """Return the parts that `write_stored` wrote.

    Raises:
        CheckpointError: the file is not there, or is not such a file.
    """
    try:
        with safe_open(path, framework="numpy") as handle:
            parts = {part: Stored({}, hashes) for part, hashes in json.loads(handle.metadata()["hashes"]).items()}
            for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                part, name = key.split("/")
                parts[part].arrays[name] = handle.get_tensor(key)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as stored anchors or counts: {error}") from error
    return parts


@dataclass(frozen=True)
class Checkpoint:
    """One saved step: a folder that `from_pretrained` opens, with the trainer's state beside the model."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser updates done."""
        return int(self.state["step"])

    def part(self, name: str) -> dict[str, Any] | None:
        """Return the state dict of the `optimizer` or the `scheduler`, None where only the model was saved."""
        file = self.path / f"{name}.pt"
        return torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else None

    def prior_states(self) -> dict[str, Stored]:
        """Return the states of the run's priors."""
        return read_stored(self.path / PRIORS) if (self.path / PRIORS).is_file() else {}


def save_checkpoint(
    run: Path,
    *,
    model: Any,
    tokenizer: Any,
    state: dict[str, Any],
    parts: Mapping[str, dict[str, Any]] | None = None,
    write: Mapping[str, Callable[[str], Any]] | None = None,
    priors: Mapping[str, Stored] | None = None,
) -> Path:
    """Write `run/checkpoint-{step}` and return it. A reader sees the old state or the new one, never a half.

    Args:
        run: the run's folder.
        model: what `save_pretrained` writes, or a module of which the weights are written.
        tokenizer: written beside it.
        state: ours; `step` names the folder.
        parts: state dicts, written as NAME.pt.
        write: file name -> what writes it.
        priors: states of the run's priors.

    A checkpoint of the same step stands aside as `checkpoint-{step}.old`, still readable, until the new one is there.
    """
    final = run / f"checkpoint-{state['step']}"
    temporary = run / f".checkpoint-{state['step']}.{os.getpid()}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_policy(temporary, model, tokenizer)
    for name, part in (parts or {}).items():
        torch.save(part, temporary / f"{name}.pt")
    for name, written in (write or {}).items():
        written(str(temporary / name))
    if priors:
        write_stored(temporary / PRIORS, priors)
    (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for file in temporary.iterdir():
        _sync(file)
    old = run / f"{final.name}.old"
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
    temporary.replace(final)
    _sync(run)
    shutil.rmtree(old, ignore_errors=True)
    return final


def save_policy(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a model and its tokenizer as `from_pretrained` opens them; of a bare module, its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(model, folder)
    tokenizer.save_pretrained(folder)


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights of a checkpoint into a model; of a peft model, its adapters'."""
    load_module(model, folder)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the complete checkpoint of the highest step in a run folder, or None."""
    found = [c for c in map(read_checkpoint, run.glob("checkpoint-*")) if c is not None]
    return max(found, key=lambda c: (c.step, c.path.suffix != ".old"), default=None)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint of a folder, None where it is none or incomplete."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        int(state["step"])
        return Checkpoint(folder, state)
    return None


def policy_folder(path: str | Path) -> Path:
    """Return the folder that holds a model: `path` itself, or the newest checkpoint of the run folder `path`.

    Raises:
        CheckpointError: neither is there.
    """
    folder = Path(path)
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return folder
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise CheckpointError(f"{folder}: no model and no checkpoint-N in it; give a run folder or a saved model")
    return checkpoint.path


def clear_partial(run: Path) -> None:
    """Remove what an interrupted save left behind."""
    for old in run.glob("checkpoint-*.old"):
        if old.with_suffix("").exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(old.with_suffix(""))
    for leftover in run.glob(".*.part"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
