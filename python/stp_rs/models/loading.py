"""Opening a saved policy and its tokenizer from a local folder."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from stp_rs.errors import CheckpointError


def load_policy(path: str | Path) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a local folder written by `save_pretrained`. Nothing is downloaded.

    Raises:
        CheckpointError: the folder is missing or incomplete.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; give a folder written by save_pretrained or a run folder")
    try:
        model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be opened: {error}") from error
    return model, load_tokenizer(folder)


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer of a local folder, without its model. Nothing is downloaded.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be opened: {error}") from error
