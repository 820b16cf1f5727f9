"""State dicts without pickle: every optimiser and schedule comes back bit for bit, and what cannot is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim import lr_scheduler

from stp_rs.errors import CheckpointError
from stp_rs.train.checkpoint import Checkpoint
from stp_rs.train.state_dicts import read_state_dict, write_state_dict
from tests.fixtures import trainer


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type and, of tensors, in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or bool(np.isnan(one) and np.isnan(other))


def read_back(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    write_state_dict(path / "x.safetensors", value)
    return read_state_dict(path / "x.safetensors")


OPTIMISERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_state_of_an_optimiser_comes_back(name: str, tmp_path: Path):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimiser = OPTIMISERS[name]([weight])

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    state = optimiser.state_dict()
    found = read_back(tmp_path, state)
    assert same(found, state)
    OPTIMISERS[name]([torch.nn.Parameter(torch.zeros(2, 3))]).load_state_dict(found)


SCHEDULES: dict[str, Any] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "plateau": lr_scheduler.ReduceLROnPlateau,
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=9),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_state_of_a_schedule_comes_back(name: str, tmp_path: Path):
    def make() -> Any:
        return SCHEDULES[name](torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))

    schedule, again = make(), make()
    for _ in range(3):
        schedule.optimizer.step()
        schedule.step(*([1.0] if name == "plateau" else []))
    again.optimizer.load_state_dict(read_back(tmp_path, schedule.optimizer.state_dict()))
    again.load_state_dict(read_back(tmp_path, schedule.state_dict()))
    rates = []
    for made in (schedule, again):
        made.optimizer.step()
        made.step(*([1.0] if name == "plateau" else []))
        rates.append(made.get_last_lr())
    assert rates[0] == rates[1]


def test_numbers_and_tensors_of_every_kind_come_back(tmp_path: Path):
    half = torch.arange(4.0)
    value = {
        "numbers": [1, 2.5, True, None, "text", (0.9, 0.999), [], (), {}],
        "not finite": [math.inf, -math.inf, math.nan],
        3: {"deep": {0: torch.tensor(1, dtype=torch.int64), "0": torch.tensor([True, False])}},
        "a/b": torch.zeros(0),
        "a": {"b": torch.ones(2, dtype=torch.bfloat16), "c": torch.zeros(0)},
        "shared": [half, half, half[1:], torch.ones(3, 2).t()],
    }
    assert same(read_back(tmp_path, value), value)
    given = {"f32": np.float32(0.5), "f64": np.float64(0.1), "i64": np.int64(3), "flag": np.bool_(True)}
    assert same(read_back(tmp_path, given), {"f32": 0.5, "f64": 0.1, "i64": 3, "flag": True})


@pytest.mark.parametrize("wrong", [object(), {1, 2}, lambda: 0, 1j, b"bytes", np.zeros(2)])
def test_what_is_no_state_is_refused_by_its_place(wrong: Any, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"groups/0/mine: is a .*, which a checkpoint cannot hold"):
        read_back(tmp_path, {"groups": [{"mine": wrong}]})
    with pytest.raises(CheckpointError, match=r"groups: has the key \(1, 2\)"):
        read_back(tmp_path, {"groups": {(1, 2): 0}})


def test_a_file_of_another_kind_is_named(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    for write in (
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(b"\x80\x04."),
        lambda: save_file({"a": torch.zeros(1)}, file),
        lambda: save_file({"a": torch.zeros(1)}, file, metadata={"tree": '{"items": [["a", {"tensor": "b"}]]}'}),
        lambda: save_file({"a": torch.zeros(1)}, file, metadata={"tree": "{}"}),
        file.unlink,
    ):
        write()
        with pytest.raises(CheckpointError, match=r"x.safetensors: cannot be read"):
            read_state_dict(file)


def test_no_file_of_a_checkpoint_is_a_pickle_and_an_old_one_is_refused(tmp_path: Path):
    made = trainer(
        tmp_path, save_strategy="steps", save_steps=4, beta=0.1, sync_ref_model=True, stp_spatial="frequency"
    )
    made.train()
    made.save_model(str(tmp_path / "saved"))
    files = [path for folder in ("checkpoint-4", "saved") for path in (tmp_path / folder).iterdir()]
    assert len(files) > 10
    assert {path.suffix for path in files if path.name != "README.md"} == {".safetensors", ".json"}
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer.pt: is of an earlier version, which pickled it"):
        Checkpoint(tmp_path, {}).part("optimizer")
