r"""The graders of d1 (arXiv 2504.12216) and ESPO (arXiv 2512.03759), mistakes included.

Published graders are Python programs, so their rules are Python's own reading: `float`, `int`, `isdigit`, `\d`, `\s`.
Here they are bounded as well. Of a text the last 65,536 characters are read, every scan takes time linear in them, and
arithmetic is read by the parser of the standard library and computed on numbers of bounded size: nothing is evaluated.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

_READ = 65_536
_MAX_EXPRESSION = 1000
"""Characters of an expression; Python itself refuses nesting well below that."""
_MAX_BITS = 100_000
"""Size of a whole number on the way to a value; no target comes near it."""
_CLOSE_TO = 1e-5
_CELLS = 16
_NUMBER = re.compile(r"-?\d+\.?\d*")
_OPEN, _CLOSE = "<answer>", "</answer>"
_ENDS = ("<|eot_id|>", "<|endoftext|>")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def ending(text: str) -> str:
    """Return the part of a text that is read: its last 65,536 characters."""
    return text[-_READ:]


def first_answer(text: str) -> str | None:
    """Return the text of the first `<answer>...</answer>`, across lines; None where there is none."""
    _, opened, inner = text.partition(_OPEN)
    answer, closed, _ = inner.partition(_CLOSE)
    return answer if opened and closed else None


def last_answer(text: str) -> str | None:
    """Return the text of the last of the non-overlapping `<answer>...</answer>`, read from left to right."""
    last, at = None, 0
    while (start := text.find(_OPEN, at)) >= 0 and (end := text.find(_CLOSE, start)) >= 0:
        last, at = text[start + len(_OPEN) : end], end + len(_CLOSE)
    return last


def boxed(text: str) -> str | None:
    r"""Return the content of the last box as published code finds it; None where that raises.

    The form `\boxed X` (with a space) wins wherever it is and runs to the next `$`. Without any box or `\fbox` the
    whole text is the content, an unbalanced box raises, and a wrapper other than `\boxed{...}` stays on.
    """
    if "\\boxed " in text:
        return text.rsplit("\\boxed ", 1)[1].split("$", 1)[0]
    start = max(text.rfind("\\boxed"), -1)
    start = text.rfind("\\fbox") if start < 0 else start
    if start < 0:
        return text
    depth = 0
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0 and brace[0] == "}":
            whole = text[start : brace.end()]
            return whole[len("\\boxed{") : -1] if whole.startswith("\\boxed{") else whole
    return None


# --- GSM8K ---
def number_answer(text: str) -> tuple[float, str] | None:
    """Return d1's reading of a GSM8K completion, (value, text it was read from); None where it finds nothing."""
    text = ending(text)
    for box in _boxes(text):
        content = box.strip()
        if content.strip("."):
            value = _float(content)
            found = _NUMBER.search(content) if value is None else None
            value = float(found[0]) if found else value
            if value is not None:
                return value, content
    answer = (first_answer(text) or "").strip()
    value = _float(answer)
    if value is None and (numbers := _NUMBER.findall(answer)):
        value = float(numbers[-1])
    return None if value is None else (value, answer)


def _boxes(text: str) -> Iterator[str]:
    r"""Yield what `\\boxed\{(.*?)\}` finds: contents on one line, up to the first closing brace."""
    stop, at = re.compile("[}\n]"), 0
    while (start := text.find("\\boxed{", at)) >= 0:
        start += len("\\boxed{")
        end = stop.search(text, start)
        if end is None:
            return
        if end[0] == "}":
            yield text[start : end.start()]
        at = end.end()  # a box that starts before a line break is not closed before it either


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class Gsm8kParts(NamedTuple):
    """The parts of d1's GSM8K reward, whose sum is the reward."""

    layout: float
    """0.125 for each tag that occurs exactly once, less 0.001 per character after the end."""
    soft: float
    """0.5 if the text starts with both tags, each on one line."""
    strict: float
    """0.5 if the whole text is the layout of six lines."""
    digits: float
    """0.5 if the answer is digits only."""
    correct: float
    """2.0 if the answer is the truth, as text."""


def gsm8k_parts(text: str, truth: str) -> Gsm8kParts:
    """Return the parts of d1's GSM8K reward."""
    text = ending(text)
    answer = text.rsplit(_OPEN, 1)[-1].split(_CLOSE, 1)[0].strip()
    strict = re.match(r"<reasoning>\n.*\n</reasoning>\n<answer>\n.*\n</answer>\n$", text)
    return Gsm8kParts(
        layout=_layout(text),
        soft=0.5 * _soft(text),
        strict=0.5 * bool(strict),
        digits=0.5 * answer.isdigit(),
        correct=2.0 * (answer == truth),
    )


def _layout(text: str) -> float:
    once = [tag for tag in ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>") if text.count(tag) == 1]
    score = 0.125 * len(once)
    if "\n<answer>\n" in once:
        score -= len(text.rsplit("\n</answer>\n", 1)[-1]) * 0.001
    if "\n</answer>" in once:
        score -= (len(text.rsplit("\n</answer>", 1)[-1]) - 1) * 0.001
    return score


def _soft(text: str) -> bool:
    """Return whether both tags stand at the start, white space between them and no line break inside either."""
    line = text.split("\n", 1)[0]
    closing = re.compile(r"</reasoning>\s*<answer>")
    failed = 0  # the end of a line that is known to hold no closing tag
    for found in closing.finditer(text) if text.startswith("<reasoning>") else ():
        if found.start() >= len(line):
            return False
        if found.end() < failed:
            continue
        failed = text.find("\n", found.end()) + 1 or len(text) + 1
        if text.find(_CLOSE, found.end(), failed - 1) >= 0:
            return True
    return False


def espo_number(text: str) -> str:
    """Return what ESPO takes for the answer of a GSM8K completion; empty where it finds none."""
    text = ending(text)
    for pattern in (r"The answer is (-?[0-9.,]+).", r"#### (-?[0-9.,]+)"):
        if found := re.search(pattern, text):
            return found[1]
    numbers = re.findall(r"-?[0-9]+", text)
    return numbers[-1] if numbers else ""


# --- MATH ---
def math_answer(text: str) -> str | None:
    """Return d1's reading of a MATH completion: the last box; where that raises or is empty, the first answer tag."""
    text = ending(text)
    found = boxed(text)
    if found:
        return found
    tagged = first_answer(text)
    return found if tagged is None else tagged.strip()


def math_equal(answer: str, truth: str) -> bool:
    """Return whether two answers are equal under the MATH benchmark's normaliser (arXiv 2103.03874).

    Where normalising raises, the texts are compared as they are.
    """
    try:
        return normal(answer) == normal(truth)
    except (ValueError, IndexError):
        return answer == truth


def math_close(answer: str, truth: float) -> bool:
    """Return whether an answer is a number within 1e-6 of the truth."""
    value = _float(answer)
    return value is not None and abs(value - truth) < 1e-6


_SWAPS = (
    *(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
)


def normal(text: str) -> str:
    """Return the normal form of the MATH benchmark; ValueError or IndexError where its normaliser raises."""
    for old, new in _SWAPS:
        text = text.replace(old, new)
    parts = text.split("\\text{ ")
    if len(parts) > 2:
        raise ValueError("two units")
    text = parts[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    sides = text.split("=")
    text = sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text
    head, *parts = text.split("\\sqrt")
    roots = [part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}" for part in parts]
    text = _braced_fractions("\\sqrt".join([head, *roots]).replace(" ", ""))
    return _slash("\\frac{1}{2}" if text == "0.5" else text)


def _braced_fractions(text: str) -> str:
    head, *parts = text.split("\\frac")
    made = [head]
    for part in parts:
        if part[0] == "{":
            made.append(part)
        elif len(part) == 1:
            return text
        else:
            second = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            made.append(f"{{{part[0]}}}{second}{part[2:]}")
    return "\\frac".join(made)


def _slash(text: str) -> str:
    if text.count("/") != 1:
        return text
    top, bottom = map(int, text.split("/"))
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def math_reward(text: str, truth: str) -> tuple[float, float]:
    r"""Return d1's MATH reward, (correct, format).

    The format looks for a backspace followed by `oxed`, a misspelt `\boxed`, so ordinary text earns 0.75 with an answer
    tag and 0.25 without.
    """
    text = ending(text)
    answer, gold = (found if (found := boxed(one)) is not None else one for one in (text, truth))
    tagged = text.split(_OPEN, 2)[1].split(_CLOSE, 1)[0] if _OPEN in text else None
    misspelt = "\x08oxed" in (text if tagged is None else tagged)
    return 2.0 * math_equal(answer, gold), ((tagged is not None) + (1.0 if misspelt else 0.5)) * 0.5


# --- Countdown ---
def countdown_expression(text: str) -> str:
    """Return the expression that is graded: the last box; where that raises, the first answer tag, else all text."""
    text = ending(text)
    found = boxed(text)
    if found is None:
        tagged = first_answer(text)
        found = text if tagged is None else tagged.strip()
    for old, new in (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*")):
        found = found.replace(old, new)
    for side, after in pairwise(found.split("=")):
        run = side[len(side.rstrip("0123456789+-*/() ")) :]
        if run and after.startswith(tuple("0123456789. ")):
            return run.strip()
    return found


def countdown_correct(expression: str, numbers: Sequence[int], target: float) -> bool:
    """Return whether an expression has exactly the given numbers for its digit runs, and the target within 1e-5."""
    if not re.fullmatch(r"[\d+\-*/().\s]+", expression):
        return False
    runs = re.findall(r"\d+", expression)
    try:
        if len(runs) != len(numbers) or sorted(map(int, runs)) != sorted(numbers):
            return False
    except ValueError:  # more digits than `int` reads
        return False
    value = arithmetic(expression.strip())
    return value is not None and abs(value - target) < _CLOSE_TO


def countdown_reward(text: str, numbers: Sequence[int], target: float) -> float:
    """Return d1's Countdown reward (also ESPO's): the last answer tag earns 1.0 if right, else 0.1; no tag earns 0."""
    answer = last_answer(ending(text))
    if answer is None:
        return 0.0
    return 1.0 if countdown_correct(answer.strip(), numbers, target) else 0.1


def arithmetic(expression: str) -> float | None:
    """Return the value that Python gives to numbers joined by `+ - * / // **` and brackets.

    None where Python raises, where the value is complex or no ordinary float, and beyond the bounds of this module.
    """
    if len(expression) > _MAX_EXPRESSION:
        return None
    try:
        value = _value(ast.parse(expression, mode="eval").body)
        return None if isinstance(value, complex) else float(value)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand))
    if not isinstance(node, ast.BinOp):
        raise ValueError("no arithmetic")
    left, right = _value(node.left), _value(node.right)
    if isinstance(left, int) and isinstance(right, int) and isinstance(node.op, ast.Pow | ast.Mult):
        small = abs(left) <= 1 or right < 0 or isinstance(node.op, ast.Mult)
        bits = left.bit_length() + right.bit_length() if small else left.bit_length() * right
        if bits > _MAX_BITS and abs(left) > 1:
            raise OverflowError
    return _OPERATORS[type(node.op)](left, right)


# --- Sudoku ---
def sudoku_answer(text: str) -> str:
    """Return the digits that are graded, without white space: from the first of five patterns that gives anything."""
    text = ending(text)
    for pattern in (_fenced, _tagged, _after_tag, _before_close, _stand_alone):
        if found := (pattern(text) or "").strip():
            return re.sub(r"\s", "", found)
    return ""


def _fenced(text: str) -> str | None:
    """Return the first fence of digits and white space after the first opening tag."""
    run, at = re.compile(r"[\d\s]+"), text.find(_OPEN)
    while at >= 0 and (at := text.find("```", at)) >= 0:
        body = run.match(text, at + 3)
        if body and text.startswith("```", body.end()):
            return body[0]
        at += 1
    return None


def _tagged(text: str) -> str | None:
    inner = text.partition(_OPEN)[2]
    ends = [at for mark in (*_ENDS, _CLOSE) if (at := inner.find(mark)) >= 0]
    return inner[: min(ends)] if ends else None


def _after_tag(text: str) -> str | None:
    inner = text.partition(_CLOSE)[2]
    return inner[: min((at for mark in _ENDS if (at := inner.find(mark)) >= 0), default=len(inner))]


def _before_close(text: str) -> str | None:
    """Return the sixteen digits just before the first closing tag that has as many."""
    for part in text.split(_CLOSE)[:-1]:
        if re.fullmatch(r"\d{16}", digits := part.rstrip()[-_CELLS:]):
            return digits
    return None


def _stand_alone(text: str) -> str | None:
    found = re.search(r"\b\d{16}\b", text)
    return found[0] if found else None


def sudoku_cells(answer: str, puzzle: str, solution: str) -> tuple[int, int]:
    """Return (blank cells that are right, blank cells); a short answer is padded with zeros, a long one cut."""
    cells = answer.ljust(_CELLS, "0") if answer else ""
    right = sum(p == "0" and c == s for p, c, s in zip(puzzle[:_CELLS], cells, solution, strict=False))
    return right, puzzle[:_CELLS].count("0")


def sudoku_reward(text: str, puzzle: str, solution: str) -> float:
    """Return d1's Sudoku reward (also ESPO's): the share of blank cells right by the digits of the last answer tag."""
    digits = "".join(filter(str.isdigit, last_answer(ending(text)) or ""))
    right, blanks = sudoku_cells(digits, puzzle, solution)
    return right / max(1, blanks)
