"""Metrics of a run as TensorBoard events (extra `tensorboard`)."""

from pathlib import Path

from stp_rs.errors import ConfigError
from stp_rs.train.trainer import StepResult


class TensorBoard:
    """An `on_step` callback that writes every number of a step.

    Raises:
        ConfigError: the extra is not installed.

    Example:
        trainer.train(on_step=TensorBoard("runs/mine/tensorboard"))
    """

    def __init__(self, log_dir: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("report_to tensorboard: needs `pip install stp-rs[tensorboard]`") from error
        self._writer = SummaryWriter(str(log_dir))

    def __call__(self, result: StepResult) -> None:
        """Write the step's metrics."""
        for name, value in result.metrics.items():
            self._writer.add_scalar(name, value, result.step)
        self._writer.flush()
