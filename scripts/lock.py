"""Resolve the dependencies with every extra, for each Python named, and write constraints.txt.

python scripts/lock.py python3.10 python3.11

Where an older interpreter needs other versions than the newest one, it gets lines of its own (by marker).
torch pins its CUDA libraries and triton itself, exactly and per platform, so these stay out.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Exact versions for development and CI; `make lock` writes this file. Users get pyproject.toml's ranges.
# torch pins its CUDA libraries and triton itself, per platform.
"""
TORCHS_OWN = re.compile(r"(nvidia|cuda)-|triton$")


def extras() -> list[str]:
    """Return the names of the extras in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return re.findall(r"^([\w-]+) =", section, flags=re.MULTILINE)


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Return the interpreter's version ("3.11") and the versions pip picks for it, by normalised name."""
    probe = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", probe], check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip", "maturin"], check=True)
        report = Path(folder, "report.json")
        wanted = f"{ROOT}[{','.join(extras())}]"
        subprocess.run([*pip, "--dry-run", "--ignore-installed", "--report", str(report), wanted], check=True)
        installs = json.loads(report.read_text())["install"]
    pins = {}
    for install in installs:
        name = re.sub(r"[-_.]+", "-", install["metadata"]["name"]).lower()
        if name != "stp-rs" and not TORCHS_OWN.match(name):
            pins[name] = install["metadata"]["version"]
    return version, pins


def lines(resolved: list[tuple[str, dict[str, str]]]) -> list[str]:
    """Return one line per package, plus one for each older interpreter that needs another version of it."""
    *older, (newest, pins) = resolved
    out: list[str] = []
    for name in sorted({name for _, found in resolved for name in found}):
        pin = pins.get(name)
        special = [(version, found[name]) for version, found in older if found.get(name, pin) != pin]
        out += [f'{name}=={pin} ; python_version == "{version}"' for version, pin in special]
        if name in pins:
            marker = f' ; python_version >= "{newest}"' if special else ""
            out.append(f"{name}=={pins[name]}{marker}")
    return out


def main() -> None:
    """Write constraints.txt."""
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    resolved = [resolve(python) for python in sys.argv[1:]]
    resolved.sort(key=lambda pair: [int(part) for part in pair[0].split(".")])
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines(resolved)) + "\n")


if __name__ == "__main__":
    main()
