"""Every option of a run: sections, presets, and what is checked."""

import importlib
from typing import TYPE_CHECKING, Any

from stp_rs.config.presets import PRESETS as PRESETS
from stp_rs.config.presets import PRUNINGS as PRUNINGS
from stp_rs.config.sections import AdvantageConfig as AdvantageConfig
from stp_rs.config.sections import LikelihoodConfig as LikelihoodConfig
from stp_rs.config.sections import LossConfig as LossConfig
from stp_rs.config.sections import OptimConfig as OptimConfig
from stp_rs.config.sections import PolicyConfig as PolicyConfig
from stp_rs.config.sections import PruningConfig as PruningConfig
from stp_rs.config.sections import RolloutConfig as RolloutConfig

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig as STPConfig
    from stp_rs.config.arguments import TaskConfig as TaskConfig

_LAZY = ("STPConfig", "TaskConfig")
"""Names whose module imports transformers' TrainingArguments, which takes seconds."""


def __getattr__(name: str) -> Any:
    """Return a name of `_LAZY`."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("stp_rs.config.arguments"), name)
