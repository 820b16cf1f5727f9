"""The published grading rules once more, as Python reads text: regular expressions, float, int, and eval.

Slow and unbounded, and `eval` runs what it is given: feed it short text from the tests only.
"""

import re

Numbers = list[int]


def boxed(text: str) -> str:
    """Content of the last box; raises where the published rules do."""
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = max(text.rfind("\\boxed"), -1)
    if start < 0:
        start = text.rfind("\\fbox")
    if start < 0:
        return text
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if text[end] == "}" and depth == 0:
            whole = text[start : end + 1]
            inside = whole.startswith("\\boxed{")
            return whole[len("\\boxed{") : -1] if inside else whole
    raise ValueError("unbalanced")


def first_answer(text: str) -> str | None:
    found = re.search("<answer>(.*?)</answer>", text, re.DOTALL)
    return found[1].strip() if found else None


def last_answer(text: str) -> str | None:
    found = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1] if found else None


def gsm8k(text: str) -> float | None:
    number = r"-?\d+\.?\d*"
    for box in re.findall(r"\\boxed\{(.*?)\}", text):
        box = box.strip()
        if re.fullmatch(r"\.*", box):
            continue
        try:
            return float(box)
        except ValueError:
            if found := re.findall(number, box):
                return float(found[0])
    answer = first_answer(text)
    if not answer:
        return None
    try:
        return float(answer)
    except ValueError:
        found = re.findall(number, answer)
        return float(found[-1]) if found else None


def math_answer(text: str) -> str | None:
    try:
        found: str | None = boxed(text)
    except ValueError:
        found = None
    if not found:
        tagged = first_answer(text)
        return found if tagged is None else tagged
    return found


def _pairs(text: str) -> str:
    head, *parts = text.split("\\frac")
    for part in parts:
        if part[0] == "{":
            head += "\\frac" + part
            continue
        if len(part) == 1:
            return text
        second = part[1] if part[1] == "{" else "{" + part[1] + "}"
        head += "\\frac{" + part[0] + "}" + second + part[2:]
    return head


def _slash(text: str) -> str:
    if text.count("/") != 1:
        return text
    top, bottom = map(int, text.split("/"))
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def normal(text: str) -> str:
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ):
        text = text.replace(old, new)
    if text.count("\\text{ ") > 1:
        raise ValueError("two units")
    text = text.split("\\text{ ")[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    if text.count("=") == 1 and text.index("=") <= 2:
        text = text.split("=")[1]
    head, *parts = text.split("\\sqrt")
    text = head + "".join("\\sqrt" + (p if p[0] == "{" else "{" + p[0] + "}" + p[1:]) for p in parts)
    text = _pairs(text.replace(" ", ""))
    return _slash("\\frac{1}{2}" if text == "0.5" else text)


def math_equal(answer: str, truth: str) -> bool:
    try:
        return normal(answer) == normal(truth)
    except (ValueError, IndexError):
        return answer == truth


def countdown_expression(text: str) -> str:
    try:
        found = boxed(text)
    except ValueError:
        tagged = first_answer(text)
        found = text if tagged is None else tagged
    for old, new in (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*")):
        found = found.replace(old, new)
    equation = re.search(r"([-+*/() 0-9]+)=[0-9. ]+", found)
    return equation[1].strip() if equation else found


def countdown_value(expression: str) -> float | None:
    """What eval gives; None where it raises. Powers of more than one step may hang: leave them out."""
    if not re.fullmatch(r"[\d+\-*/().\s]+", expression):
        return None
    try:
        value = eval(expression.strip(), {"__builtins__": None}, {})
        return None if isinstance(value, complex) else float(value)
    except Exception:
        return None


def countdown_correct(expression: str, numbers: Numbers, target: float) -> bool:
    if sorted(int(n) for n in re.findall(r"\d+", expression)) != sorted(numbers):
        return False
    value = countdown_value(expression)
    return value is not None and abs(value - target) < 1e-5


SUDOKU_PATTERNS = (
    r"<answer>.*?```\s*([\d\s]+)```",
    r"<answer>(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|</answer>)",
    r"</answer>\s*(.*?)(?:<\|eot_id\|>|<\|endoftext\|>|$)",
    r".*?(\d{16})\s*</answer>",
    r"\b(\d{16})\b",
)


def sudoku_answer(text: str) -> str:
    for pattern in SUDOKU_PATTERNS:
        found = re.search(pattern, text, re.DOTALL)
        if found and found[1].strip():
            return re.sub(r"\s", "", found[1])
    return ""


def sudoku_right(answer: str, puzzle: str, solution: str) -> int:
    if not answer:
        return 0
    cells = answer.ljust(16, "0")[:16]
    return sum(p == "0" and c == s for p, c, s in zip(puzzle, cells, solution, strict=True))


def sudoku_reward(text: str, puzzle: str, solution: str) -> float:
    answer = "".join(c for c in last_answer(text) or "" if c.isdigit())
    return sudoku_right(answer, puzzle, solution) / max(1, puzzle.count("0"))


def gsm8k_reward(text: str, truth: str) -> dict[str, float]:
    answer = text.split("<answer>")[-1].split("</answer>")[0].strip()
    layout = 0.125 * sum(
        text.count(tag) == 1 for tag in ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")
    )
    if text.count("\n<answer>\n") == 1:
        layout -= len(text.split("\n</answer>\n")[-1]) * 0.001
    if text.count("\n</answer>") == 1:
        layout -= (len(text.split("\n</answer>")[-1]) - 1) * 0.001
    soft = re.match(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", text)
    strict = re.match(r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$", text)
    return {
        "layout": layout,
        "soft": 0.5 * bool(soft),
        "strict": 0.5 * bool(strict),
        "digits": 0.5 * answer.isdigit(),
        "correct": 2.0 * (answer == truth),
    }


def espo_number(text: str) -> str:
    for pattern in (r"The answer is (-?[0-9.,]+).", r"#### (-?[0-9.,]+)"):
        if found := re.search(pattern, text):
            return found[1]
    return (re.findall(r"-?[0-9]+", text) or [""])[-1]
