"""Mutated files: checkpoints, configurations, data sets, metrics and kept rollouts that are not what was written.

Whatever stands in a file, reading it ends with what was written or with one of our errors, and a checkpoint whose files
are not those of its manifest is never used. Half of the checkpoints have a manifest that fits the mutated
files, so that the readers behind it are tried too.

    python -m tests.reliability.mutations --files 10000
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PIECES = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\n",
    b",",
    b":",
    b"1e999",
    b"-1",
    b"NaN",
    b"null",
)
PIECES += (b"\xe2\x80\xae", b"'", b"!!python/object:os.system", b"&a [*a]", b"9" * 400, b"true", b"../", b"\x80\x04")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return other content: bits flipped, bytes cut, doubled, zeroed, replaced or put in."""
    new = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(new) + 1)
        end = min(len(new), at + draw.choice((1, 2, 8, 100, 1 << 14)))
        way = draw.randrange(7)
        if way == 0 and at < len(new):
            new[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del new[at:end]
        elif way == 2:
            del new[at:]
        elif way == 3:
            new[at:at] = new[at:end]
        elif way == 4:
            new[at:end] = bytes(end - at)
        elif way == 5:
            new[at:end] = draw.randbytes(end - at)
        else:
            new[at:at] = draw.choice(PIECES)
    return bytes(new)


class Checkpoints:
    """A run with two checkpoints, of which files of the second are mutated."""

    def __init__(self, room: Path, *, resealed: bool) -> None:
        from transformers.utils.logging import disable_progress_bar

        from tests.fixtures import trainer

        disable_progress_bar()
        self.whole, self.run, self.resealed = room / "whole", room / "run", resealed
        given = {"stp_rollouts": 2, "num_iterations": 1, "save_strategy": "steps", "save_steps": 1}
        trainer(self.whole, **given).train()
        shutil.copytree(self.whole, self.run)
        self.files = sorted(p for p in (self.run / "checkpoint-2").iterdir() if p.is_file())
        self.model = trainer(room / "other", **given)

    def __call__(self, draw: random.Random) -> str:
        """Mutate a file and read the run; return how that ended."""
        from stp_rs.train.checkpoint import MANIFEST, _contents, newest_checkpoint

        file = draw.choice(self.files)
        before = file.read_bytes()
        content = mutated(before, draw)
        manifest = self.run / "checkpoint-2" / MANIFEST
        sealed = manifest.read_bytes()
        try:
            if draw.random() < 0.05:
                file.unlink()
            else:
                file.write_bytes(content)
            fits = self.resealed and file.name != MANIFEST and draw.random() < 0.5
            if fits:
                manifest.write_text(json.dumps(_contents(manifest.parent)), encoding="utf-8")
            found = newest_checkpoint(self.run)
            if found is None:
                raise AssertionError("no checkpoint was found beside an intact one")
            same = file.is_file() and file.read_bytes() == before
            if found.step == 2 and not (same or fits or _same_manifest(file, sealed)):
                raise AssertionError(f"{file.name}: a mutated file was used")
            if found.step == 2 and not same:
                self.model.prepare(found)
                return "read"
            return "intact" if same else "refused"
        finally:
            file.write_bytes(before)
            manifest.write_bytes(sealed)


def _same_manifest(file: Path, sealed: bytes) -> bool:
    """Return whether a file is the manifest and says the same in other bytes, or less."""
    from stp_rs.train.checkpoint import MANIFEST

    if file.name != MANIFEST or not file.is_file():
        return False
    said, whole = json.loads(file.read_bytes().decode(errors="replace")), json.loads(sealed)
    return all(whole.get(name) == entry for name, entry in said.items() if (file.parent / name).is_file())


class Readers:
    """Files of other kinds: (content that is right, what reads it)."""

    def __init__(self, room: Path, run: Path) -> None:
        from stp_rs.config import STPConfig, TaskConfig
        from stp_rs.tasks import get_task
        from stp_rs.tasks.data import load_rows
        from stp_rs.train.metrics import read_metrics

        self.room = room
        recipes = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
        rows = [{"question": "1+1?", "answer": "#### 2"}, {"question": "a\nb", "answer": "3"}]
        table = b'question,answer\r\n"a ""b"", c",#### 2\r\nq,3\r\n'
        puzzles = b"Puzzle,Solution\n1234340021434321,1234341221434321\n1234340021430021,1234341221434321\n"
        self.kinds: list[tuple[str, bytes, Callable[[Path], Any]]] = [
            *(("yaml", path.read_bytes(), TaskConfig.from_yaml) for path in recipes),
            *(("yaml", path.read_bytes(), STPConfig.from_yaml) for path in recipes[:1]),
            ("jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows), load_rows),
            ("json", json.dumps(rows).encode(), load_rows),
            ("csv", table, load_rows),
            ("csv", puzzles, lambda path: get_task("sudoku", data=str(path)).rows("train", 1, 0)),
            ("csv", puzzles, get_task("sudoku").load),
            ("jsonl", (run / "metrics.jsonl").read_bytes(), read_metrics),
        ]

    def __call__(self, draw: random.Random) -> str:
        """Write a mutated file and read it; return how that ended."""
        suffix, content, read = draw.choice(self.kinds)
        file = self.room / f"mutated.{suffix}"
        file.write_bytes(mutated(content, draw))
        read(file)
        return "read"


def run(files: int, *, seed: int = 0, resealed: bool = True) -> tuple[Counter[str], list[str]]:
    """Mutate so many files; return what happened how often, and what is wrong."""
    from stp_rs.errors import InternalError, StpError

    counts, wrong = Counter[str](), []
    with tempfile.TemporaryDirectory() as text, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        room = Path(text)
        checkpoints = Checkpoints(room, resealed=resealed)
        readers = Readers(room, checkpoints.whole)
        for number in range(files):
            draw = random.Random(seed * 1_000_003 + number)
            kind, act = ("checkpoint", checkpoints) if draw.random() < 0.4 else ("file", readers)
            try:
                counts[f"{kind}: {act(draw)}"] += 1
            except InternalError as error:
                wrong.append(f"{kind} {number}: {error!r:.300}")
            except StpError:
                counts[f"{kind}: typed error"] += 1
            except Exception as error:
                wrong.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]}")
    return counts, wrong


def main() -> int:
    """Run a command line; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    counts, wrong = run(args.files, seed=args.seed)
    print(f"{args.files:,} mutated files in {time.monotonic() - started:.0f} s: {dict(sorted(counts.items()))}")
    print(f"{len(wrong)} wrong")
    print(*wrong[:30], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
