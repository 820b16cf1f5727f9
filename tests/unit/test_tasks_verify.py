"""math-verify in its own process: time limits hold in any thread, and a hang harms nobody."""

import sys
import threading
from pathlib import Path

import pytest

from stp_rs import tasks
from stp_rs.cli import grade as grading
from stp_rs.errors import ConfigError
from stp_rs.tasks import competition
from stp_rs.tasks.graders import verify
from stp_rs.tasks.graders.modes import Item

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
    assert worker.ask([0], 5.0) == [0]
    # what hangs has no answer; a new child answers the rest, and an old answer is not mistaken for it
    assert worker.ask([0, 600, 0.01, 0.02], 0.5) == [0, None, 0.01, 0.02]
    assert worker.ask([-1], 5.0) == [None]
    assert worker.ask([0] * 200, 5.0) == [0] * 200  # more than one batch
    assert worker.ask([], 5.0) == []


def test_it_works_off_the_main_thread(worker: verify.TimedWorker):
    found: list[object] = []
    threads = [threading.Thread(target=lambda s=s: found.extend(worker.ask([s], 5.0))) for s in (0, 0.01, 0.02)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0.01, 0.02]


def test_a_child_that_cannot_start_says_why():
    broken = verify.TimedWorker([sys.executable, "-c", "raise SystemExit('no such library')"])
    with pytest.raises(ConfigError, match="no such library"):
        broken.ask([0], 1.0)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'stp-rs\[math\]'"):
        verify.verify([verify.Pair("1", "1")])
    with pytest.raises(ConfigError, match="math-verify is not installed"):
        competition.math_verified(["\\boxed{a}"], answer=["b"])
    # without it, what is not certain is not judged
    answers = ["\\boxed{a}", "\\boxed{7}", "\\boxed{2\\sqrt{3}}"]
    assert competition.math_grades(answers, ["a", "8", "\\sqrt{12}"]) == ["text", "no", "unsure"]
    assert competition.math_correct(answers, answer=["a", "8", "\\sqrt{12}"]) == [1.0, 0.0, None]
    items = [Item(text, truth, "", {}) for text, truth in zip(answers, ["a", "8", "\\sqrt{12}"], strict=True)]
    report = grading.grade_items("math", items, explain=True)
    assert (report.n, report.unsure, report.ungraded, report.accuracy) == (2, 1, 0, 0.5)
    assert report.to_dict()["unsure"] == 1
    score = tasks.get_task("math").score(answers, [{"answer": a} for a in ("a", "8", "\\sqrt{12}")])
    assert (score["solved"], score["unsure"]) == ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0])


FAKE = """
import time
asked = 0
def parse(text, parsing_timeout):
    return text
def verify(gold, answer, timeout_seconds, allow_set_relation_comp, float_rounding, numeric_precision=0):
    global asked
    asked += 1
    if "hang" in answer:
        while True:
            pass
    if "swallowed" in answer:
        try:
            while True:
                pass
        except Exception:
            return False
    if "uninterrupted" in answer:
        return max(range(10**15)) == 0
    if "busy" in answer:
        time.sleep(1.5)
        return True
    if "asleep" in answer:
        time.sleep(600)
    if "memory" in answer:
        raise MemoryError
    if "count" in answer:
        return asked % 2 == 1
    return gold.lower() == answer.lower()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "math_verify.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verify, "available", lambda: True)
    monkeypatch.setattr(verify, "_VERDICTS", type(verify._VERDICTS)())
    made = verify.TimedWorker([sys.executable, "-c", verify._CHILD])
    monkeypatch.setattr(verify, "_WORKER", made)
    yield made
    made.close()


def pairs(*answers: str) -> list[verify.Pair]:
    return [verify.Pair("A", answer) for answer in answers]


def test_verdicts_limits_and_errors_of_a_batch(fake: verify.TimedWorker):
    found = verify.verify(pairs("a", "hang", "b", "memory", "a"), seconds=0.5)
    assert found == [True, None, False, False, True]


def test_what_ran_out_of_time_is_no_verdict_though_the_library_catches_every_exception(fake: verify.TimedWorker):
    assert verify.verify(pairs("swallowed", "a"), seconds=0.5) == [None, True]


def test_what_no_alarm_can_end_is_ended_by_its_cpu_seconds(fake: verify.TimedWorker):
    assert verify.verify(pairs("uninterrupted", "a"), seconds=0.1) == [None, True]


def test_time_that_a_busy_machine_takes_from_the_child_does_not_count(
    fake: verify.TimedWorker, monkeypatch: pytest.MonkeyPatch
):
    assert verify.verify(pairs("busy"), seconds=0.5) == [True]
    monkeypatch.setattr(verify, "_WAIT_SECONDS", 1.0)
    assert verify.verify(pairs("asleep", "a"), seconds=0.5) == [None, True]  # and yet nothing waits for ever


def test_a_pair_is_compared_once(fake: verify.TimedWorker):
    first = verify.verify(pairs("count", "count"))
    assert first == verify.verify(pairs("count")) * 2  # another comparison would say the opposite
    assert verify.verify(pairs("hang"), seconds=0.2) == [None]
    assert verify.verify(pairs("hang"), seconds=0.2) == [None]  # no verdict is kept where there was none


def test_verdicts_are_kept_within_a_bound(fake: verify.TimedWorker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "_KEPT", 3)
    verify.verify(pairs("a", "b", "c", "d", "e"))
    assert [pair.answer for pair in verify._VERDICTS] == ["c", "d", "e"]


def test_rewards_work_off_the_main_thread_where_an_alarm_does_not(fake: verify.TimedWorker):
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(verify.verify(pairs("a", "hang", "b"), seconds=0.3)))
    thread.start()
    thread.join()
    assert found == [True, None, False]


def test_what_is_left_goes_to_math_verify(fake: verify.TimedWorker):
    columns = {"answer": ["\\sin x"] * 2}
    answers = ["\\boxed{\\sin x \\sin x}", "\\boxed{\\sin\\, x}"]
    assert competition.math_grades(answers, columns["answer"]) == ["no", "text"]
    assert competition.math_verified(answers, **columns) == [0.0, 1.0]
    hanging = ["\\boxed{\\hang x}"]
    assert competition.math_grades(hanging, ["\\sin x"]) == ["slow"]
    assert competition.math_correct(hanging, answer=["\\sin x"]) == [0.0]  # no way to be excused from a judgement


def test_a_forked_process_starts_its_own_child(fake: verify.TimedWorker):
    assert verify.verify(pairs("a")) == [True]
    fake._owner = -1  # as it is in a fork: the child belongs to the parent
    assert verify.verify(pairs("b")) == [False]
