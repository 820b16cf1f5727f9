"""The files of the project, as the meta tests see them."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".git", ".venv", "target", "dist", "build", "runs", "__pycache__"}


@cache
def files() -> tuple[Path, ...]:
    """Return what git tracks or would track, relative to the root; without git, all but products."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        found = {Path(name) for name in listed if name}
    except (OSError, subprocess.CalledProcessError):
        everything = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        found = {path for path in everything if not NOT_OURS.intersection(path.parts)}
    return tuple(sorted(path for path in found if (ROOT / path).is_file()))


def sources(suffix: str, *folders: str) -> list[Path]:
    """Return the files of a language under some folders; all of them where no folder is given."""
    ours = [path for path in files() if path.suffix == suffix]
    return [path for path in ours if not folders or path.parts[0] in folders]


def text(path: Path) -> str:
    """Return the text of a file given relative to the root; empty if it is no text, or not there."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return ""
