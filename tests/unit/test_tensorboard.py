"""Metrics as TensorBoard events, without TensorBoard: what is written, and the sentence where it is missing."""

import sys
import types
from pathlib import Path

import pytest

from stp_rs.cli.run import Events
from stp_rs.errors import ConfigError
from stp_rs.integrations.tensorboard import TensorBoard
from tests.fixtures import trainer


class Writer:
    """Keeps what it is asked to write."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.scalars: list[tuple[str, float, int]] = []
        self.flushed = 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed += 1


def test_every_metric_of_a_step_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[Writer] = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: made.append(Writer(folder)) or made[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    seen: list[int] = []
    events = Events(on_step=lambda result: seen.append(result.step)).also(TensorBoard(tmp_path / "tb"))
    result = trainer(tmp_path).train_step()
    events.on_step(result)
    (writer,) = made
    assert writer.folder == str(tmp_path / "tb")
    assert writer.scalars == [(name, value, 1) for name, value in result.metrics.items()]
    assert writer.flushed == 1
    assert seen == [1], "the callback that was there is still called"


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install stp-rs\[tensorboard\]"):
        TensorBoard(tmp_path)
