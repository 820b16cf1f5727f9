"""Laws of the chained sums: what the prompt fixes, what the grader accepts, and that it takes any text."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from stp_rs.tasks.sums import SumsTask, sums_grades

terms = st.lists(st.integers(1, 99), min_size=2, max_size=9)


def task_for(given: list[int]) -> SumsTask:
    return SumsTask(count=len(given), max_term=max(given))


def without_carry(a: str, b: str) -> str:
    width = max(len(a), len(b))
    digits = zip(a.zfill(width), b.zfill(width), strict=True)
    return "".join(str((int(x) + int(y)) % 10) for x, y in digits)


@given(terms)
def test_right_working_is_right_and_dropped_carries_are_not(numbers: list[int]):
    task = task_for(numbers)
    assert sums_grades([task.completion(numbers)], [numbers]) == {"solved": [1.0], "steps": [1.0]}
    lazy = task.completion(numbers, carry=False)
    partial = list(accumulate(map(str, numbers), without_carry))
    assert [int(line.split("=")[1]) for line in lazy.split(";")[:-1]] == [int(x) for x in partial[1:]]
    grades = sums_grades([lazy], [numbers])
    truth = list(accumulate(numbers))
    first = next((k for k, (a, b) in enumerate(zip(partial, truth, strict=True)) if int(a) != b), len(numbers))
    assert grades["solved"] == [float(int(partial[-1]) == truth[-1])]
    assert grades["steps"][0] * (len(numbers) - 1) >= first - 1


@given(terms)
def test_what_is_fixed_is_exactly_what_is_no_partial_sum(numbers: list[int]):
    task = task_for(numbers)
    text, width = task.completion(numbers), len(str(len(numbers) * max(numbers)))
    sums = set()
    for at, sign in enumerate(text):
        if sign in "=[":
            sums |= set(range(at + 1, at + 1 + width))
        if sign == ";" and text[at + 1] != "[":
            sums |= set(range(at + 1, at + 1 + width))
    fixed = {**task.template, **task.copies({"terms": numbers})}
    assert set(fixed) == set(range(task.completion_length)) - sums
    padded = [*text, *[""] * (task.completion_length - len(text))]
    assert all(padded[at] == sign for at, sign in fixed.items())
    assert padded[-1] == ""
    assert task.reference({"terms": numbers}) == text
    assert all(sign in task.allowed(at) for at, sign in enumerate(padded))


@given(terms, st.integers(0, 10**9 - 1), st.integers(0, 5))
def test_the_answer_counts_by_its_value(numbers: list[int], wrong: int, zeros: int):
    right = sum(numbers)
    texts = [f"[{'0' * zeros}{right}]", f"[{wrong}]", f"[{right}][{wrong}]", f"[{wrong}][{right}]", f"({right})"]
    solved = sums_grades(texts, [numbers] * 5)["solved"]
    assert solved == [1.0, float(wrong == right), float(wrong == right), 1.0, 0.0]


@given(st.text("0123456789+=;[] \u0663x", max_size=80), terms)
def test_any_text_is_graded(text: str, numbers: list[int]):
    grades = sums_grades([text], [numbers])
    assert grades["solved"][0] in (0.0, 1.0)
    assert 0.0 <= grades["steps"][0] <= 1.0
    assert grades["solved"][0] == 0.0 or f"{sum(numbers)}]" in text
