"""Names of release 0.1: using one raises an ImportError that says the new name; kept for one release."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = {
    "Sampler": "stp_rs.Unmasking",
    "Sampling": "stp_rs.SamplingParams",
    "Engine": "stp_rs.Batching",
    "Reference": "stp_rs.Hint",
    "TrajectoryBuffer": "stp_rs.Rollout",
    "Minibatch": "stp_rs.Rollout",
    "fill_buffer": "stp_rs.Rollout.replaced(reward=..., advantage=...)",
    "minibatches": "stp_rs.Rollout.minibatches",
}
MODULES = {
    "advantages": "objective.advantages",
    "analysis": "eval and stp_rs.testing",
    "bounds": "objective.bounds",
    "buffer": "data.trajectories",
    "checkpoint": "train.checkpoint",
    "console": "train.console",
    "engine": "rollout.loop",
    "evaluation": "eval.evaluate",
    "flags": "cli.flags",
    "likelihood": "objective.likelihood",
    "limits": "config.limits",
    "loss": "objective.loss",
    "metrics": "train.metrics",
    "model": "models",
    "played": "rollout.regroup",
    "presets": "config.presets",
    "prompts": "data.prompts",
    "reference": "models.reference",
    "replay": "objective.replay",
    "report": "train.report",
    "rescue": "rollout.rescue",
    "rewards": "rollout.rewards",
    "run": "cli.run",
    "sampling": "rollout.params",
    "sft": "train.warmup",
    "spatial": "train.priors",
    "priors.reference": "priors.hint",
    "tasks.paper": "tasks.published",
    "trainer": "train.trainer",
    "update": "train.update",
    "variance_cli": "cli.variance",
}


def check_name(name: str) -> None:
    """Raise ImportError, with the new name, if `stp_rs.NAME` was a name of 0.1."""
    if name in NAMES:
        raise ImportError(f"stp_rs.{name} is {NAMES[name]} since 0.2; use that name")


class _OldModules:
    """An import finder that comes last: it is asked only for modules that no other finder has found."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raise ImportError where `name` was a module of 0.1."""
        del path, target
        package, _, module = name.partition(".")
        if package == "stp_rs" and module in MODULES:
            raise ImportError(f"{name} is stp_rs.{MODULES[module]} since 0.2; import from there", name=name)
        return None


sys.meta_path.append(_OldModules)
