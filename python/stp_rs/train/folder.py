"""What a run leaves in its folder beside metrics and checkpoints: options, environment, report."""

from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerControl, TrainerState

from stp_rs.config.arguments import STPConfig, TaskConfig
from stp_rs.train.callbacks import RolloutCallback
from stp_rs.train.checkpoint import atomic_file, write_json
from stp_rs.train.environment import environment
from stp_rs.train.metrics import read_metrics
from stp_rs.train.report import write_report
from stp_rs.train.report.facts import ENVIRONMENT


class RunFolder(RolloutCallback):
    """Writes config.yaml and environment.json at the start, and the report at the end, of a stopped run too."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what the report reads."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            if not isinstance(args, TaskConfig):  # the command line has written its own
                write_config(args, folder)
            write_json(folder / ENVIRONMENT, environment())

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the report."""
        folder = Path(str(args.output_dir))
        said = read_metrics(folder / "metrics.jsonl")  # a run that is stopped before its first log has nothing to show
        if state.is_world_process_zero and state.global_step and said:
            write_report(folder)

    def on_stop(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Write the report of what there is."""
        self.on_train_end(args, state, control)


def write_config(config: STPConfig, run: Path) -> None:
    """Write config.yaml: the options of a run by their flat names."""
    import yaml

    run.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.to_flat(), sort_keys=False)
    with atomic_file(run / "config.yaml") as temporary:
        temporary.write_text(text, encoding="utf-8")
