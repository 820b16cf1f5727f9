"""What a run is made of besides its options: rewards by their code, data and starting weights by their content.

A checkpoint keeps these names and hashes, and a resume whose own are others is refused (`loop.resumable`).
"""

import dis
import functools
import hashlib
import inspect
import json
import re
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stp_rs._core import __version__
from stp_rs.data.rows import Rows
from stp_rs.models.content import content_digest

GIVEN = "stp_identity"
"""Attribute of a reward or prior that names it: what it says is compared in place of the code."""
ROWS = 1 << 17
"""Most rows that are hashed; of a larger set so many, spread over it."""
_PLAIN = (str, int, float, complex, bool, bytes, type(None), re.Pattern)
_STDLIB = sysconfig.get_path("stdlib")


def run_inputs(
    *, rewards: Mapping[str, Any], rows: Rows, module: torch.nn.Module, tokenizer: Any, priors: Any
) -> dict[str, Any]:
    """Return what a run is made of, by the names of the trainer's arguments; JSON-ready."""
    return {
        "stp_rs": __version__,
        "reward_funcs": {name: described(reward) for name, reward in rewards.items()},
        "train_dataset": rows_hash(rows),
        "model": weights_hash(module),
        "peft_config": adapters_hash(module),
        "processing_class": tokenizer_hash(tokenizer),
        "priors": None if priors is None else [described(prior) for prior in priors],
    }


def described(made: Any) -> str:
    """Return what tells a function or object from another: its qualified name and a hash of its code, or a name given.

    The hash is of its source, of what its closure and its module hold under the names that it reads (numbers, texts,
    functions, classes, modules of one's own), and of an object's own numbers and texts. What the code itself changes
    (counters) is left out, and so is code of installed packages.
    """
    given = getattr(made, GIVEN, None)
    if given is not None:
        return str(given)
    digest = hashlib.sha256()
    for part in _parts(made, {}):
        digest.update(f"{len(part)}:{part};".encode("utf-8", "surrogatepass"))
    return f"{_name(made)} {digest.hexdigest()[:16]}"


def rows_hash(rows: Rows) -> str:
    """Return a hash of a training set's rows in their order; a stream is told by its columns alone."""
    if rows.size is None:
        columns = getattr(rows.dataset, "column_names", None)
        return f"a stream of {', '.join(columns) if columns else type(rows.dataset).__name__}"
    digest = hashlib.sha256(str(rows.size).encode())
    for row in rows.spread(ROWS):
        digest.update(_text(dict(row)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def weights_hash(module: torch.nn.Module) -> str:
    """Return a hash of a module's state, of adapters (which start at random) their names and shapes alone."""
    new = {name for name, p in module.named_parameters() if p.requires_grad} if _adapters(module) else set()
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(f"{name.replace('_orig_mod.', '')} {tuple(value.shape)} {value.dtype}".encode())
        if name not in new:
            whole: Any = value.full_tensor() if hasattr(value, "full_tensor") else value  # of a sharded model
            digest.update(content_digest(whole))
    return digest.hexdigest()[:16]


def adapters_hash(module: torch.nn.Module) -> str | None:
    """Return a hash of what adapters are (rank, scale, targets), None where there are none."""
    configs = _adapters(module)
    if not configs:
        return None
    where = ("base_model_name_or_path", "inference_mode", "revision")
    known = {
        name: {key: _text(value) for key, value in config.to_dict().items() if key not in where}
        for name, config in configs.items()
    }
    return hashlib.sha256(_text(known).encode()).hexdigest()[:16]


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: its vocabulary and rules, special tokens and chat template."""
    known: dict[str, Any] = {name: _text(getattr(tokenizer, name, None)) for name in _SPECIAL}
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(fast, "to_str"):
        rules = json.loads(fast.to_str())
        known["rules"] = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    elif hasattr(tokenizer, "get_vocab"):
        known["vocabulary"] = sorted(tokenizer.get_vocab().items(), key=str)
    else:
        known["vocabulary"] = described(type(tokenizer))
    return hashlib.sha256(_text(known).encode("utf-8", "surrogatepass")).hexdigest()[:16]


_SPECIAL = ("chat_template", "pad_token_id", "mask_token_id", "eos_token_id", "bos_token_id", "unk_token_id")


def _adapters(module: Any) -> Mapping[str, Any]:
    configs = getattr(module, "peft_config", None)
    return configs if isinstance(configs, Mapping) else {}


def _name(made: Any) -> str:
    while isinstance(made, functools.partial):
        made = made.func
    named = made if hasattr(made, "__qualname__") else type(made)
    return f"{getattr(named, '__module__', None)}.{named.__qualname__}"


def _parts(made: Any, seen: dict[int, Any]) -> Iterator[str]:
    """Yield texts that say what something is made of, each thing once."""
    if id(made) in seen:
        return
    seen[id(made)] = made  # and stays alive, so that its number means nothing else
    yield _name(made)
    if isinstance(made, functools.partial):
        yield from _parts(made.func, seen)
        yield from _values({**dict(enumerate(made.args)), **made.keywords}, seen)
    elif isinstance(made, types.MethodType):
        yield from _parts(made.__func__, seen)
        yield from _parts(made.__self__, seen)
    elif isinstance(made, types.FunctionType):
        if _is_own(made.__module__, made.__code__.co_filename):
            yield from _function(made, seen)
    elif isinstance(made, type):
        yield from _class(made, seen)
    elif isinstance(made, torch.nn.Module):
        yield weights_hash(made)
    elif not isinstance(made, types.BuiltinFunctionType) and _is_told(type(made)):
        yield from _class(type(made), seen)
        changed = {name for function in _methods(type(made)) for name in _stored(function.__code__, "STORE_ATTR")}
        state = {name: value for name, value in getattr(made, "__dict__", {}).items() if name not in changed}
        yield from _values(state, seen)
    if hasattr(made, "__wrapped__"):
        yield from _parts(made.__wrapped__, seen)


def _function(made: types.FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    code = made.__code__
    yield _source(code)
    yield from _values(dict(enumerate(made.__defaults__ or ())), seen)
    yield from _values(made.__kwdefaults__ or {}, seen)
    changed = {*_stored(code, "STORE_GLOBAL"), *_stored(code, "STORE_DEREF")}
    read: dict[Any, Any] = {}
    for name, cell in zip(code.co_freevars, made.__closure__ or (), strict=True):
        if name not in changed:
            try:
                read[name] = cell.cell_contents
            except ValueError:  # not bound yet
                read[name] = None
    names = {step.argval for step in _steps(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")} - changed
    read.update({name: made.__globals__[name] for name in names if name in made.__globals__})
    yield from _values(read, seen)


def _class(made: type, seen: dict[int, Any]) -> Iterator[str]:
    for function in _methods(made):
        if function.__code__.co_filename and _is_own(function.__module__, function.__code__.co_filename):
            yield function.__qualname__
            yield from _function(function, seen)


def _methods(made: type) -> list[types.FunctionType]:
    found = [vars(kind)[name] for kind in made.__mro__ for name in sorted(vars(kind))]
    unwrapped = [getattr(value, "__func__", getattr(value, "fget", value)) for value in found]
    return [value for value in unwrapped if isinstance(value, types.FunctionType)]


def _values(values: Mapping[Any, Any], seen: dict[int, Any]) -> Iterator[str]:
    """Yield what named values are, of those that can be told: the others may change while a run goes on."""
    for name in sorted(values, key=str):
        value = values[name]
        if isinstance(value, _PLAIN) or (isinstance(value, tuple | frozenset) and _is_plain(value)):
            yield f"{name}={_text(value)}"
        elif isinstance(value, types.ModuleType):
            file = getattr(value, "__file__", None)
            if file and _is_own(value.__name__, file):
                yield f"{name}={hashlib.sha256(Path(file).read_bytes()).hexdigest()}"
        elif callable(value):
            yield f"{name}:"
            yield from _parts(value, seen)


def _is_plain(values: Any) -> bool:
    return all(isinstance(v, _PLAIN) or (isinstance(v, tuple | frozenset) and _is_plain(v)) for v in values)


def _source(code: types.CodeType) -> str:
    """Return the source of code, or its instructions where there is none (a console, `exec`)."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError, IndexError, SyntaxError):
        steps = [f"{step.opname} {'' if hasattr(step.argval, 'co_code') else step.argval!r}" for step in _steps(code)]
        return re.sub(r" at 0x\w+", "", "\n".join(steps))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a function's code and that of what is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    for inner in _codes(code):
        yield from dis.get_instructions(inner)


def _stored(code: types.CodeType, operation: str) -> set[str]:
    """Return the names that code changes; a constructor's are those of the start."""
    if code.co_name in ("__init__", "__post_init__", "__new__"):
        return set()
    return {str(step.argval) for step in _steps(code) if step.opname == operation}


def _is_own(module: str | None, file: str) -> bool:
    """Return whether code is the user's: ours is told by its version, and installed packages are not looked into."""
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts) or file.startswith((_STDLIB, "<frozen"))
    return (module or "").split(".")[0] != "stp_rs" and not installed


def _is_told(made: type) -> bool:
    """Return whether an object's own numbers and texts say what it is: of our classes and the user's."""
    file = getattr(inspect.getmodule(made), "__file__", None)
    return made.__module__.split(".")[0] == "stp_rs" or _is_own(made.__module__, file or "")


def _bytes(value: torch.Tensor) -> Any:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _text(value: Any) -> str:
    """Return a value as text that is the same in every process."""
    try:
        return json.dumps(value, sort_keys=True, default=_said)
    except (TypeError, ValueError, RecursionError):  # keys that are no texts, or a value inside itself
        return _said(value)


def _said(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return _text(sorted(map(_said, value)))
    if isinstance(value, re.Pattern):
        return f"{value.pattern!r} {value.flags}"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(_bytes(value)).hexdigest()}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
