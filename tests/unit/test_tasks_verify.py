"""math-verify in its own process: time limits hold in any thread, and a hang harms nobody."""

import sys
import threading
import time
from pathlib import Path

import pytest

from stp_rs.cli import grade as grading
from stp_rs.errors import ConfigError
from stp_rs.tasks import questions
from stp_rs.tasks.graders import verify

ECHO = """
import json, sys, time
print("ready", flush=True)
for line in sys.stdin:
    seconds = json.loads(line)
    if seconds < 0:
        sys.exit(1)
    time.sleep(seconds)
    print(json.dumps(seconds), flush=True)
"""


@pytest.fixture
def worker():
    made = verify.TimedWorker([sys.executable, "-c", ECHO])
    yield made
    made.close()


def test_answers_timeouts_and_deaths(worker: verify.TimedWorker):
    assert worker.ask(0, 5.0) == 0
    start = time.monotonic()
    assert worker.ask(60, 0.2) is None
    assert time.monotonic() - start < 10
    assert worker.ask(0.01, 5.0) == 0.01  # a new child answers; the old answer is not mistaken for it
    assert worker.ask(-1, 5.0) is None
    assert worker.ask(0, 5.0) == 0


def test_it_works_off_the_main_thread(worker: verify.TimedWorker):
    found: list[object] = []
    threads = [threading.Thread(target=lambda s=s: found.append(worker.ask(s, 5.0))) for s in (0, 0.01, 0.02)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0.01, 0.02]


def test_a_child_that_cannot_start_says_why():
    broken = verify.TimedWorker([sys.executable, "-c", "raise SystemExit('no such library')"])
    with pytest.raises(ConfigError, match="no such library"):
        broken.ask(0, 1.0)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'stp-rs\[math\]'"):
        verify.verify(["1"], ["1"])
    with pytest.raises(ConfigError, match="math-verify is not installed"):
        questions.math_verified(["\\boxed{a}"], answer=["b"])
    assert questions.math_verified(["\\boxed{a}"], answer=["a"]) == [1.0]  # nothing is left for math-verify


FAKE = """
import time
def parse(text, parsing_timeout):
    return text
def verify(gold, answer, timeout_seconds):
    if "hang" in answer:
        time.sleep(60)
    return gold.lower() == answer.lower()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "math_verify.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verify, "available", lambda: True)
    made = verify.TimedWorker([sys.executable, "-c", verify._CHILD])
    monkeypatch.setattr(verify, "_WORKER", made)
    yield made
    made.close()


def test_what_is_left_goes_to_math_verify(fake: verify.TimedWorker):
    assert verify.verify(["A", "A", "A"], ["a", "hang", "b"], seconds=2.0) == [True, None, False]
    assert questions.math_verified(["\\boxed{\\SIN X}"], answer=["\\sin x"]) == [1.0]
    items = [grading.Item("\\boxed{\\SIN X}", "\\sin x", "", {})]
    assert grading.grade_items("math", items, use_verify=True, explain=True).differences[0]["rule"] == "as-verify"
    assert grading.grade_items("math", items).accuracy == 0.0


def test_the_real_library():
    if not verify.available():
        pytest.skip("math-verify is not installed")
    assert verify.verify(["$\\sin^2 x$", "$2$"], ["$1-\\cos^2 x$", "$3$"], seconds=30.0) == [True, False]
    assert questions.math_verified(["\\boxed{\\binom{5}{2}}"], answer=["10"]) == [1.0]
