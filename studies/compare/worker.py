"""One run of a comparison, in a process of its own: warm-up, training with validation, one reading of the test split.

`python -m studies.compare.worker FOLDER` does the run that FOLDER/config.yaml describes and writes FOLDER/result.json;
with `--warm-up` before the folder it only makes the policy that the run starts from.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from stp_rs import _core
from stp_rs.cli.run import (
    TEST_SEED,
    TaskTrainer,
    WarmUp,
    complete,
    decode_both,
    found_model,
    make_task,
    prepare_policy,
    set_threads,
    validation,
    warm_up_identity,
)
from stp_rs.config import TaskConfig
from stp_rs.errors import StpError
from stp_rs.models import load_configured
from stp_rs.models.base import DiffusionModel
from stp_rs.tasks.base import Task
from stp_rs.train.checkpoint import policy_folder, write_json
from stp_rs.train.metrics import PHASES, Ledger, read_metrics
from stp_rs.train.trainer import STPTrainer
from studies.compare.plan import run_identity

RESULT = "result.json"
_AVERAGED = {
    "distinct": "diffusion/distinct",
    "zero_std_share": "frac_reward_zero_std",
    "reward": "reward",
    "reward_std": "reward_std",
    "anchor_share": "diffusion/anchor_share",
    "nfe": "diffusion/nfe",
    "grad_norm": "grad_norm",
    "grad_snr": "diffusion/grad_snr",
    "logp_var": "diffusion/logp_var",
}
"""Columns of a curve that are means over the steps since the point before: what a single step says is noise."""


def train_and_test(
    folder: Path, callbacks: Sequence[TrainerCallback] = (), on_sft: WarmUp | None = None
) -> dict[str, Any]:
    """Do the run of a folder, or continue it, and return its result; a finished run is only read.

    The validation split is read every `eval_steps`, the test split once, at the end: by the final policy, and by the
    checkpoint that validation picked where it is another.
    """
    with locked(folder):
        if (folder / RESULT).is_file():
            return dict(json.loads((folder / RESULT).read_text(encoding="utf-8")))
        config = TaskConfig.from_yaml(folder / "config.yaml")
        identity = run_identity(config)
        set_threads(config)
        task = make_task(config)
        config = complete(config, task)
        share_warm_up(config, task, folder, on_sft)
        model, tokenizer = prepare_policy(config, task, folder, on_sft)
        scores = validation(model, tokenizer, task, config)
        trainer = TaskTrainer(config, task, model, tokenizer, callbacks)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
        lines = read_metrics(folder / "metrics.jsonl", measured=True)
        if lines and "eval_solved" not in lines[-1]:
            lines[-1].update(trainer.evaluate())
        curve = make_curve(before_training(scores, trainer.ledger), lines)
        picked = pick(curve)
        result = {
            "identity": identity,
            "curve": curve,
            **test_once(trainer, task, tokenizer, folder, picked),
            "compute": trainer.ledger.to_dict(),
            "versions": versions(config),
        }
        write_json(folder / RESULT, result)
        for checkpoint in folder.glob("checkpoint-*"):
            if checkpoint.name not in (f"checkpoint-{picked}", f"checkpoint-{trainer.state.global_step}"):
                shutil.rmtree(checkpoint, ignore_errors=True)
        return result


def only_warm_up(folder: Path, on_sft: WarmUp | None = None) -> None:
    """Put the warm-up of a run into its folder, made or shared."""
    config = TaskConfig.from_yaml(folder / "config.yaml")
    set_threads(config)
    task = make_task(config)
    share_warm_up(complete(config, task), task, folder, on_sft)


def share_warm_up(config: TaskConfig, task: Task, folder: Path, on_sft: WarmUp | None = None) -> None:
    """Put the warm-up of (task, seed, policy) into the run folder; the first run of a comparison to need it makes it.

    A run folder is ROOT/runs/VARIANT/seed-N, and the warm-ups are in ROOT/warmup.
    """
    own = folder / "warmup"
    if config.model_name_or_path or own.exists():
        return
    shared = shared_warm_up(config, folder)
    with locked(shared):
        prepare_policy(config, task, shared, on_sft)
    part = folder / ".warmup.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(shared / "warmup", part)
    part.replace(own)


def shared_warm_up(config: TaskConfig, folder: Path) -> Path:
    """Return the folder of the warm-up that a run and others start from; the configuration has its lengths."""
    digest = hashlib.sha256(json.dumps(warm_up_identity(config), sort_keys=True).encode()).hexdigest()[:12]
    return folder.parents[2] / "warmup" / digest


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; it is free again when this one ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def before_training(scores: Mapping[str, Any], ledger: Ledger) -> dict[str, float]:
    """Return the metrics line of update 0: validation scores, and what the making of priors cost."""
    made = ledger.forwards["prior"]
    return {
        **{f"eval_{name}": scores[name] for name in ("solved", "solved_prior", "nfe", "nfe_prior")},
        **{"step": 0, "diffusion/forwards_prior": made, "diffusion/forward_equivalents": made},
        "diffusion/cpu_seconds": ledger.cpu_seconds["prior"],
        "diffusion/gpu_seconds": ledger.gpu_seconds["prior"],
    }


def make_curve(start: Mapping[str, float], lines: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return a point for update 0 and for each metrics line with validation scores.

    Args:
        start: the line of update 0.
        lines: every metrics line of the run, in order; counters are cumulative.
    """
    points = [_point(start, [])]
    window: list[Mapping[str, float]] = []
    for line in lines:
        window.append(line)
        if "eval_solved" in line:
            points.append(_point(line, window))
            window = []
    return points


def _point(line: Mapping[str, float], window: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [entry[name] for entry in window if name in entry]
        return float(np.mean(values)) if values else None

    return {
        "update": int(line["step"]),
        "rollouts": int(line.get("diffusion/completions", 0)),
        "forwards": {phase: int(line.get(f"diffusion/forwards_{phase}", 0)) for phase in PHASES},
        "tokens": {phase: int(line.get(f"diffusion/tokens_{phase}", 0)) for phase in PHASES},
        "forward_equivalents": int(line.get("diffusion/forward_equivalents", 0)),
        "cpu_seconds": line.get("diffusion/cpu_seconds", 0.0),
        "cpu_seconds_rollout": line.get("diffusion/cpu_seconds_rollout", 0.0),
        "gpu_seconds": line.get("diffusion/gpu_seconds", 0.0),
        "solved_free": line["eval_solved"],
        "solved_prior": line["eval_solved_prior"],
        "nfe_free": line["eval_nfe"],
        "nfe_prior": line["eval_nfe_prior"],
        **{name: mean(source) for name, source in _AVERAGED.items()},
    }


def pick(curve: Sequence[Mapping[str, Any]]) -> int:
    """Return the update that validation picks: the best free decode, of equals the latest."""
    return int(max(curve, key=lambda point: (point["solved_free"], point["update"]))["update"])


def test_once(trainer: STPTrainer, task: Task, tokenizer: Any, folder: Path, picked: int) -> dict[str, Any]:
    """Return test scores of the final policy (`test`) and of the picked checkpoint (`selected`)."""
    config: Any = trainer.args
    rows = task.rows("test", config.eval_size, TEST_SEED)

    def scores(model: DiffusionModel) -> dict[str, float]:
        both = decode_both(model, tokenizer, task, rows, config)
        renamed = {"solved": "solved_free", "nfe": "nfe_free"}
        return {renamed.get(name, name): value for name, value in both.items() if isinstance(value, float)}

    final = scores(trainer.policy)
    chosen = final if picked == trainer.state.global_step else scores(policy_at(picked, config, folder))
    return {"test": final, "selected": {"update": picked, **chosen}}


def policy_at(update: int, config: TaskConfig, folder: Path) -> DiffusionModel:
    """Return the policy of a run after `update` updates, 0 for the one before RL."""
    before = config.model_name_or_path or folder / "warmup"
    found = policy_folder(folder / f"checkpoint-{update}") if update else found_model(before)
    return load_configured(config, found, config.device)[0]


def versions(config: TaskConfig) -> dict[str, str]:
    """Return what the numbers of a run were made with."""
    device = config.device
    return {
        "stp_rs": _core.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def main(arguments: Sequence[str]) -> int:
    """Do the run of a folder; an error is the last line of stderr. Stops when the process that started it is gone."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet: Any = logging.disable_progress_bar
    quiet()
    folder, parent = Path(arguments[-1]), os.getppid()

    def watch(*_: Any) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt

    class Watch(TrainerCallback):
        """Stops where nobody waits for the result."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Look."""
            watch()

    try:
        if "--warm-up" in arguments:
            only_warm_up(folder, watch)
        else:
            train_and_test(folder, [Watch()], watch)
    except StpError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
