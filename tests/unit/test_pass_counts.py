"""How many canvases an update of every preset computes: the table of docs/performance.md, counted anew."""

from pathlib import Path

import pytest

from stp_rs import STPConfig
from stp_rs.cli.estimate import _Numbers
from stp_rs.config.presets import PRESETS
from stp_rs.eval.forecast import Forecast, forecast

DOCS = Path(__file__).parents[2] / "docs" / "performance.md"
PRUNED = {"none": "none", "stp": "steps:0.6"}
PROMPT, LENGTH, ROWS = 20, 32, 12


def counted(preset: str, temporal: str, **options: float) -> Forecast:
    """Return the forecast of a batch of 12 completions of 32 tokens in 16 steps, groups of 6."""
    args = STPConfig(
        **{
            "preset": preset, "stp_spatial": "none", "stp_temporal": temporal, "use_cpu": True, "bf16": True,
            "max_completion_length": LENGTH, "diffusion_steps": 16, "block_length": 8, "num_generations": 6,
            "per_device_train_batch_size": ROWS, "stp_slots": ROWS, "stp_rollouts": 1, "output_dir": "nowhere",
            **options,
        }
    )  # fmt: skip
    return forecast(args, [{"prompt": str(i)} for i in range(ROWS // 6)], _Numbers(PROMPT, 500))


def row(preset: str) -> str:
    """Return a preset's line: canvases with gradient, of the old policy and of the reference, and rows of the head."""
    cells = [f"`{preset}`"]
    for temporal in PRUNED.values():
        found = counted(preset, temporal)
        graded, scored = found.cost["backward"].forwards, found.cost["likelihood"].forwards
        reference = 0
        if PRESETS[preset].get("beta", 0.0) > 0:
            alone = counted(preset, temporal, beta=0.0).cost
            reference = scored - alone["likelihood"].forwards
        cells += [f"{graded} / {scored - graded - reference} / {reference}", f"{found.cost['likelihood'].head_rows:,}"]
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_of_passes_is_what_is_counted(preset: str):
    """Written with `python -m tests.unit.test_pass_counts`."""
    assert row(preset) in DOCS.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    for name in PRESETS:
        print(row(name), flush=True)
