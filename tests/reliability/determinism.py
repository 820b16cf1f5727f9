"""The determinism matrix: one run of a very small policy under many circumstances, and how its weights differ.

    python -m tests.reliability.determinism

Cells that must be bit-equal and are not make the command fail. What the arithmetic of the processor decides (threads,
shapes of matrix products) is bounded instead.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

UPDATES = 4
BOUND = 1e-4
"""Largest difference of a weight after the run, where bits may differ; weights move by sixty times that."""
ENVIRONMENTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "another process": ([], {}),
    "hash seed 1": ([], {"PYTHONHASHSEED": "1"}),
    "hash seed 4242": ([], {"PYTHONHASHSEED": "4242"}),
    "locale C": ([], {"LC_ALL": "C"}),
    "-X dev": (["-X", "dev"], {}),
    "-O": (["-O"], {}),
}
THREADS = {"2 BLAS threads": ([], {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"})}
OPTIONS: dict[str, dict[str, Any]] = {
    "again": {},
    "1 worker": {"dataloader_num_workers": 1},
    "4 workers": {"dataloader_num_workers": 4},
    "save every update": {"save_strategy": "steps", "save_steps": 1},
}
BATCHES: dict[str, dict[str, Any]] = {
    "1 slot": {"stp_slots": 1},
    "3 slots": {"stp_slots": 3},
    "20 tokens a forward": {"stp_max_tokens": 20},
}


def weights(folder: Path, *, stops: tuple[int, ...] = (), **options: Any) -> list[float]:
    """Return all weights after a run in a folder, stopped after some updates and gone on with."""
    from transformers import TrainerCallback
    from transformers.utils.logging import disable_progress_bar

    from tests.fixtures import trainer

    disable_progress_bar()

    class Stop(TrainerCallback):
        def __init__(self, at: int) -> None:
            self.at = at

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= state.global_step >= self.at

    given = {"stp_rollouts": UPDATES, "num_iterations": 1, **options}
    if stops:
        given |= {"save_strategy": "steps", "save_steps": 1}
    for stop in (*stops, UPDATES):
        made = trainer(folder, **given)
        made.add_callback(Stop(stop))
        made.train(resume_from_checkpoint="auto" if stops else False)
    return [float(x) for p in made.model.parameters() for x in p.detach().flatten()]


def elsewhere(python: list[str], variables: dict[str, str]) -> list[float]:
    """Return the weights of a run in another process."""
    path = os.pathsep.join(entry for entry in ("", *sys.path) if entry)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}
    command = [sys.executable, "-W", "ignore", *python, "-m", "tests.reliability.determinism", "--cell"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def matrix() -> dict[str, tuple[float, bool]]:
    """Return for each cell the largest difference of a weight, and whether it must be 0."""
    import torch

    torch.set_num_threads(1)  # as in the other processes: sums of two threads have other bits
    found: dict[str, tuple[float, bool]] = {}
    with tempfile.TemporaryDirectory(prefix="stp rs é ") as text:
        room = Path(text)
        first = np.array(weights(room / "first"))

        def cell(name: str, other: list[float], *, equal: bool) -> None:
            found[name] = float(np.abs(np.array(other) - first).max()), equal

        for name, options in OPTIONS.items():
            cell(name, weights(room / name, **options), equal=True)
        for stops in ((1,), (2,), (3,), (1, 2, 3)):
            cell(f"stopped after {', '.join(map(str, stops))}", weights(room / f"stop{stops}", stops=stops), equal=True)
        for name, options in BATCHES.items():
            cell(name, weights(room / name, **options), equal=False)
    for name, how in ENVIRONMENTS.items():
        cell(name, elsewhere(*how), equal=True)
    for name, how in THREADS.items():
        cell(name, elsewhere(*how), equal=False)
    return found


def main() -> int:
    """Print the table; return 1 where a cell is not what it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().cell:
        with tempfile.TemporaryDirectory() as room:
            print(json.dumps(weights(Path(room) / "run")))
        return 0
    found = matrix()
    import torch

    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}; {UPDATES} updates")
    for name, (difference, equal) in found.items():
        shown = "bit-equal" if difference == 0 else f"{difference:.1e}"
        print(f"| {name} | {shown} | {'must be' if equal else 'may differ'} |")
    wrong = [name for name, (difference, equal) in found.items() if difference > (0 if equal else BOUND)]
    print(f"{len(wrong)} wrong", *wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
