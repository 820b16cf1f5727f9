"""The model card: what a run's folder, its checkpoints and a saved model say of themselves."""

from pathlib import Path

import pytest
import yaml

from stp_rs.config import PRESETS
from stp_rs.train.card import CARD, SOURCES
from tests.fixtures import trainer


def card_of(folder: Path) -> tuple[dict[str, object], str]:
    """Return the metadata and the text of a folder's card."""
    _, head, text = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_run_its_checkpoints_and_a_saved_model_have_a_card(tmp_path: Path):
    made = trainer(tmp_path / "run", preset="espo", save_strategy="steps", save_steps=1, logging_steps=1)
    made.train()
    made.save_model(str(tmp_path / "saved"))
    folders = [tmp_path / "run", tmp_path / "saved", *(tmp_path / "run").glob("checkpoint-*")]
    assert len(folders) > 3
    for folder in folders:
        head, text = card_of(folder)
        assert {"stp_rs", "espo", "reinforcement-learning"} <= set(head["tags"])
        for part in ("## Data", "scored by `ones`", "## Method", "| `preset` | `espo` |", "## Metrics", "## Citation"):
            assert part in text
        assert "eprint = {2602.08905}" in text
        assert "eprint = {2512.03759}" in text, "the preset's own paper"
    step = made.state.global_step
    assert f"After {step:,} optimiser updates" in card_of(tmp_path / "run")[1]
    assert "After 8 optimiser updates" in card_of(tmp_path / "run" / "checkpoint-8")[1]
    assert str(tmp_path) not in card_of(tmp_path / "run")[1]


def test_a_card_says_what_was_measured(tmp_path: Path):
    made = trainer(tmp_path, logging_steps=1)
    made.train()
    log = [line["reward"] for line in made.state.log_history if "reward" in line]
    assert f"| mean reward of a training batch | {log[0]:.3f} | {log[-1]:.3f} |" in card_of(tmp_path)[1]
    made.summary = {"solved_before": 0.25, "solved_after": 0.5, "eval_size": 8}
    made.create_model_card(model_name="org/name: |x|")
    text = card_of(tmp_path)[1]
    assert "| solved of 8 held-out problems, greedy | 0.250 | 0.500 |" in text
    assert "# org/name: |x|" in text


@pytest.mark.parametrize("preset", SOURCES)
def test_the_paper_of_a_preset_is_the_one_that_the_documents_name(preset: str):
    assert preset in PRESETS
    lines = Path("docs/presets.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| `{preset}` |")]
    assert SOURCES[preset] in line
