"""Checkpoints that survive kill -9 and notice a flipped bit: written beside their place, with a manifest of hashes."""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import warnings
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
from stp_rs.train.state_dicts import read_state_dict, write_state_dict
from stp_rs.types import Stored

STATE = "stp_state.json"
"""What a checkpoint keeps of ours: the ledger, and the options that decide the run's numbers."""
TRAINER = "trainer_state.json"
"""What it keeps of transformers'."""
ARGUMENTS = "training_args.json"
"""Every option of the run (transformers pickles them as training_args.bin)."""
PRIORS = "priors.safetensors"
MANIFEST = "manifest.json"
"""Size and sha256 of every other file of a checkpoint: what is not as it says is damaged."""


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


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are not finite, and what JSON does not know, as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


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
        """Return the state dict of the `optimizer` or the `scheduler`, None where only the model was saved.

        Raises:
            CheckpointError: the file cannot be read, or is a pickle of an earlier version, which nothing here opens.
        """
        file = self.path / f"{name}.safetensors"
        if file.is_file():
            return read_state_dict(file)
        if (self.path / f"{name}.pt").is_file():
            raise CheckpointError(
                f"{self.path / name}.pt: is of an earlier version, which pickled it, and needs that version to go on; "
                f"or start a new run from its weights: give {self.path} as the model, in another output_dir"
            )
        return None

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
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write `run/checkpoint-{step}` and return it. A reader sees the old state or the new one, never a half.

    Args:
        run: the run's folder.
        model: what `save_pretrained` writes, or a module of which the weights are written.
        tokenizer: written beside it.
        state: ours; `step` names the folder.
        parts: state dicts, written as NAME.safetensors.
        write: file name -> what writes it.
        priors: states of the run's priors.
        weights: the whole ones of a model whose weights are shared out over processes.

    A checkpoint of the same step stands aside as `checkpoint-{step}.old`, still readable, until the new one is there.
    """
    final = run / f"checkpoint-{state['step']}"
    temporary = run / f".checkpoint-{state['step']}.{os.getpid()}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _fill(temporary, model, tokenizer, state, parts or {}, write or {}, priors or {}, weights)
        old = run / f"{final.name}.old"
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        temporary.replace(final)
        _sync(run)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)  # room on a full disk
        reason = _of_the_disk(error)
        if reason is None:
            raise
        raise OSError(*reason, str(final)) from error
    shutil.rmtree(old, ignore_errors=True)
    return final


def _fill(
    temporary: Path,
    model: Any,
    tokenizer: Any,
    state: dict[str, Any],
    parts: Mapping[str, dict[str, Any]],
    write: Mapping[str, Callable[[str], Any]],
    priors: Mapping[str, Stored],
    weights: Mapping[str, torch.Tensor] | None,
) -> None:
    save_policy(temporary, model, tokenizer, weights)
    for name, part in parts.items():
        write_state_dict(temporary / f"{name}.safetensors", part)
    for name, written in write.items():
        written(str(temporary / name))
    if priors:
        write_stored(temporary / PRIORS, priors)
    (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    (temporary / MANIFEST).write_text(json.dumps(_contents(temporary), indent=1) + "\n", encoding="utf-8")
    for file in temporary.iterdir():
        _sync(file)


def _of_the_disk(error: Exception) -> tuple[int, str] | None:
    """Return the number and words of what the system refused; libraries in Rust tell it in the text of the error."""
    if isinstance(error, OSError):
        return None if error.errno is None else (error.errno, error.strerror or str(error))
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else (int(found[1]), os.strerror(int(found[1])))


def save_policy(folder: Path, model: Any, tokenizer: Any, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a model and its tokenizer as `from_pretrained` opens them; of a bare module, its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(model, folder, weights)
    tokenizer.save_pretrained(folder)


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights of a checkpoint into a model; of a peft model, its adapters'."""
    load_module(model, folder)


def newest_checkpoint(run: Path, *, until: int | None = None) -> Checkpoint | None:
    """Return the intact checkpoint of the highest step in a run folder, None where there is none at all.

    `until` is the highest step that may be. A damaged one is left where it is, and a warning names the file.

    Raises:
        CheckpointError: there are checkpoints, and none of them is intact.
    """
    damaged: list[str] = []
    for folder in sorted(filter(Path.is_dir, run.glob("checkpoint-*")), key=_age, reverse=True):
        if until is not None and _age(folder)[0] > until:
            continue
        try:
            found = read_checkpoint(folder)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            warnings.warn(f"{problem}; {found.path.name} is used instead", stacklevel=2)
        return found
    if damaged:
        raise CheckpointError(
            f"{damaged[0]}; no checkpoint in {run} is intact: restore it, or start anew in another output_dir"
        )
    return None


def remove_checkpoints(run: Path, after: int) -> None:
    """Remove the checkpoints of a run that are of a later step, the newest first."""
    for folder in sorted(run.glob("checkpoint-*"), key=_age, reverse=True):
        if folder.is_dir() and _age(folder)[0] > after:
            shutil.rmtree(folder)


def rotate_checkpoints(run: Path, limit: int | None, *, newest: int, best: int | None = None) -> None:
    """Remove the oldest checkpoints until `limit` are left; None or 0 keeps all.

    Their age is their step, not the clock's. One of a later step than the `newest` one, which was just written, is no
    part of this run (it is damaged, or someone's), and goes first. The newest and the best are kept.
    """
    there = sorted((path for path in run.glob("checkpoint-*") if path.is_dir()), key=_age)
    order = sorted(there, key=lambda path: _age(path)[0] <= newest)
    kept = {newest} if best is None else {newest, best}
    spare = [path for path in order if _age(path)[0] not in kept]
    most = max(limit, len(order) - len(spare)) if limit else len(order)
    for path in spare[: len(order) - most]:
        shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint of a folder.

    Raises:
        CheckpointError: it holds none, or a file of it is not what was written.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint")
    if (problem := damage(folder)) is not None:
        raise CheckpointError(problem)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        step = int(state["step"])
    except (OSError, *_NOT_OURS) as error:
        raise CheckpointError(f"{folder / STATE}: cannot be read: {error}") from error
    named = re.fullmatch(r"checkpoint-(\d+)(\.old)?", folder.name)
    if named is not None and int(named[1]) != step:
        raise CheckpointError(f"{folder}: is the checkpoint of step {step} under another's name; rename it")
    return Checkpoint(folder, state)


def damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, None where they are as they were written.

    Files that came later are not looked at, and neither is the card, which people edit. A folder is hashed once for as
    long as its files stay as they are.
    """
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in written.items()}
    except (OSError, *_NOT_OURS):
        return f"{folder / MANIFEST}: is missing or cannot be read, so the checkpoint is not known to be whole"
    unlisted = [path.name for path in folder.iterdir() if _READ.fullmatch(path.name) and path.name not in expected]
    if unlisted:
        return f"{folder / MANIFEST}: does not list {min(unlisted)}, so the checkpoint is not known to be whole"
    return next((wrong for name, entry in expected.items() if (wrong := _differs(folder / name, *entry))), None)


def _differs(file: Path, size: int, digest: str) -> str | None:
    try:
        if not file.is_file():
            return f"{file}: is missing"
        if file.stat().st_size != size:
            return f"{file}: has {file.stat().st_size} bytes, was written with {size}"
        return None if _hash(file) == digest else f"{file}: its content is not what was written (sha256 differs)"
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"


_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON of another shape than was written may raise."""
_READ = re.compile(
    r"(stp|trainer)_state\.json|(adapter_)?model.*\.safetensors|(optimizer|scheduler|priors)\.safetensors"
)
"""Files that a run goes on from: what a manifest must list, where they are."""


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, "README.md"))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)} for path in files
    }


def _hash(path: Path) -> str:
    status = path.stat()
    return _digest(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1 << 8)
def _digest(path: str, *_as_it_is: int) -> str:
    """Return the sha256 of a file for as long as it stays as it is; a long run's are forgotten in time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _age(folder: Path) -> tuple[int, bool]:
    """Return what orders checkpoints: the step in the folder's name, and whether it is not one that stands aside."""
    step = folder.name.removeprefix("checkpoint-").removesuffix(".old")
    return (int(step) if step.isdecimal() else -1, folder.suffix != ".old")


def policy_folder(path: str | Path) -> Path:
    """Return the folder that holds a model: `path` itself, or the newest checkpoint of the run folder `path`.

    Raises:
        CheckpointError: neither is there, or what is there is damaged.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file() and (problem := damage(folder)) is not None:
        raise CheckpointError(problem)
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return folder
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None and (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder}: a run that has no checkpoint yet; train it further with its own command first"
        )
    if checkpoint is None:
        raise CheckpointError(f"{folder}: no model and no checkpoint-N in it; give a run folder or a saved model")
    return checkpoint.path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
