"""Corrected GSM8K and MATH answers: wrong ones that were paid, right ones that were refused, and their neighbours."""

import pytest

from stp_rs.tasks import competition, gsm8k
from stp_rs.tasks.graders import verify

needs_verify = pytest.mark.skipif(not verify.available(), reason="math-verify is not installed")

# (truth, answer): judged here, without math-verify
CERTAIN_RIGHT = [
    *[
        ("\\frac{1}{2}", "0.5"),
        ("\\frac{7}{2}", "3 1/2"),
        ("\\frac72", "3\\frac12"),
        ("7/2", "3\u00bd"),
        ("-3.5", "-3 1/2"),
    ],
    *[
        ("1234567890", "1,234,567,890"),
        ("1200", "1{,}200"),
        ("1200", "1\\,200"),
        ("1200", "1\u202f200"),
        ("10^4", "1e4"),
    ],
    *[("0.0000000001", "10^{-10}"), ("0.67", "\\frac23"), ("3.14", "3.14159"), ("18", "18.0"), ("-5", "\u22125")],
    *[
        ("50\\%", "50"),
        ("50\\%", "0.5"),
        ("50", "50%"),
        ("10", "10 cm"),
        ("10\\text{ cm}", "10"),
        ("90^\\circ", "90 degrees"),
    ],
    *[("10\\text{ cm}", "10 centimeters"), ("\\$18", "18 dollars"), ("5\\text{ m}^2", "5"), ("60", "60^\\circ")],
    *[("204_5", "204_{5}"), ("\\log_2 3", "\\log_{2} 3"), ("x\\ne3", "x \\neq 3"), ("x\\le3", "x \\leqslant 3")],
    *[
        ("x \\geq 2", "x\u22652"),
        ("\\infty", "+\\infty"),
        ("(-\\infty,\\infty)", "(-\\infty, +\\infty)"),
        ("\\sqrt2", "\u221a2"),
    ],
    *[("x^2", "x\u00b2"), ("x^{10}", "x\u00b9\u2070"), ("2\\pi", "2\u03c0"), ("1\\pm\\sqrt2", "1 \u00b1 \u221a2")],
    *[
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("19,46,82", "19, 46 and 82"),
    ],
    *[("\\begin{array}{c}1\\\\2\\end{array}", "\\begin{array}{c} 1 \\\\ 2 \\end{array}"), ("1,2", "2 \\text{ and } 1")],
    *[
        ("\\begin{cases}x&1\\\\y&2\\end{cases}", "\\begin{cases} x & 1 \\\\ y & 2 \\end{cases}"),
        ("5", "x=5"),
        ("5", "2+3=5"),
    ],
    *[
        ("\\text{(B)}", "B"),
        ("B", "(B)"),
        ("\\text{Evelyn}", "Evelyn"),
        ("\\text{even}", "Even"),
        ("(1,\\frac12)", "(1,0.5)"),
    ],
]
CERTAIN_WRONG = [
    *[
        ("\\frac1{40000}", "\\frac1{40001}"),
        ("0", "10^{-10}"),
        ("1234567890", "1234567891"),
        ("3 1/2", "31/2"),
        ("12", "1 2"),
    ],
    *[
        ("1 2", "12"),
        ("3", "1 2"),
        ("1/3", "0.333333"),
        ("0.5", "0.5004"),
        ("0.67", "0.66"),
        ("2.50", "2.54"),
        ("5", "-5"),
    ],
    *[("\\frac{1}{1000000}", "0"), ("100000000000001", "100000000000000"), ("5", "\u20135"), ("-2", "10\u201312")],
    *[("204_5", "204"), ("204_5", "204_6"), ("5", "6=5"), ("5", "2+2=5"), ("3", "x+y=3"), ("x", "X"), ("2x+1", "2X+1")],
    *[
        ("3:45", "10:45"),
        ("\\frac34", "3:4"),
        ("5\\text{ cm}", "5\\text{ m}"),
        ("5\\text{ cm}", "5 \\text{ cm}^2"),
        ("0.5", "0.5%"),
    ],
    *[
        ("72", "not 72"),
        ("72", "\\text{not } 72"),
        ("72", "28 or 72"),
        ("72", "72, 28"),
        ("1,2", "1,2,3"),
        ("1,1,2", "1,2,2"),
    ],
    *[
        ("1,2", "2,1,1"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "\\{1,2\\}"),
        ("(1,2)", "1,2"),
        ("[0,1)", "[0,1]"),
    ],
    *[("silent", "listen"), ("\\text{odd}", "\\text{even}"), ("B", "A"), ("5", ""), ("", ""), ("72", "seventy-two")],
]
# (truth, answer): judged by math-verify
ALGEBRA_RIGHT = [
    *[
        ("(-\\infty,3)", "x < 3"),
        ("(2,5)", "2<x<5"),
        ("[0,1]", "0 \\le x \\leq 1"),
        ("(2,5)", "x \\in (2,5)"),
        ("x>5", "5<x"),
    ],
    *[
        ("(1,2)\\cup(3,4)", "(3,4)\\cup(1,2)"),
        ("x+2y=3", "2x+4y=6"),
        ("y=2x+1", "y-2x=1"),
        ("1\\pm\\sqrt2", "1+\\sqrt2, 1-\\sqrt2"),
    ],
    *[
        ("120", "5!"),
        ("10", "\\binom{5}{2}"),
        ("2\\sqrt3", "\\sqrt{12}"),
        ("x^2+2x+1", "(x+1)^2"),
        ("\\frac{x}{10}", "0.1x"),
    ],
    *[
        ("3.14", "\\pi"),
        ("2.83", "2\\sqrt2"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("3+4i", "4i+3"),
        ("\\mathbb{R}", "(-\\infty,\\infty)"),
    ],
    *[
        ("\\sqrt2,1", "1,\\sqrt2"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("2^{100}", "1267650600228229401496703205376"),
        ("2,3", "x=2 or x=3"),
    ],
]
ALGEBRA_WRONG = [
    *[
        ("x/2^{40}", "x/2^{41}"),
        ("\\frac{\\sqrt2}{10^7}", "\\frac{\\sqrt3}{10^7}"),
        ("\\frac{\\pi}{10^{30}}", "0"),
        ("e^{-20}", "0"),
    ],
    *[
        ("2^{100}", "1267650600228229401496703205377"),
        ("10^{100}", "10^{100}+1"),
        ("\\sqrt2", "1.414214"),
        ("\\pi", "3.14159265"),
    ],
    *[
        ("(-\\infty,3)", "x \\le 3"),
        ("[0,1]", "0<x<1"),
        ("x<3", "x>3"),
        ("3", "x<3"),
        ("x=5", "y=5"),
        ("a/b", "b/a"),
        ("3x", "3"),
    ],
    *[("\\pm 2", "2"), ("2", "\\pm 2"), ("3+4i", "3-4i"), ("|x|", "x"), ("y=2x+3", "y=2x+4"), ("x=1,y=2", "x=2,y=1")],
    *[
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
        ("2.83", "2\\sqrt3"),
        ("2.8", "2\\sqrt2"),
    ],
]


def judged(truth: str, answer: str) -> str:
    return competition.math_grades([f"so \\boxed{{{answer}}}"], [truth])[0]


@pytest.mark.parametrize(("truth", "answer"), CERTAIN_RIGHT)
def test_math_answers_that_are_certainly_right(truth: str, answer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "available", lambda: False)
    assert judged(truth, answer) in ("text", "number")


@pytest.mark.parametrize(("truth", "answer"), CERTAIN_WRONG)
def test_math_answers_that_are_certainly_wrong(truth: str, answer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "available", lambda: False)
    assert judged(truth, answer) == "no"


@needs_verify
@pytest.mark.parametrize(("truth", "answer"), ALGEBRA_RIGHT)
def test_math_answers_that_algebra_finds_right(truth: str, answer: str, monkeypatch: pytest.MonkeyPatch):
    assert judged(truth, answer) == "verify"
    monkeypatch.setattr(verify, "available", lambda: False)
    assert judged(truth, answer) == "unsure"


@needs_verify
@pytest.mark.parametrize(("truth", "answer"), ALGEBRA_WRONG)
def test_math_answers_that_algebra_finds_wrong(truth: str, answer: str, monkeypatch: pytest.MonkeyPatch):
    assert judged(truth, answer) == "no"
    monkeypatch.setattr(verify, "available", lambda: False)
    assert judged(truth, answer) == "unsure"


@needs_verify
@pytest.mark.timeout(120)
def test_a_hostile_expression_ends_and_is_wrong():
    answers = [
        f"\\boxed{{{hostile}}}"
        for hostile in ("9^{9^{9^{9}}}x", "(x+1)^{99999}", "x^{" * 500 + "}" * 500, "\\frac" * 300)
    ]
    grades = competition.math_grades([*answers, "\\boxed{\\sqrt4}"], ["x+1"] * 4 + ["2"])
    assert set(grades[:4]) <= {"no", "slow"}
    assert grades[4] == "verify"  # the batch goes on behind it


# (completion, the number that it states, or None)
NUMBERS = [
    *[
        ("The answer is 72, which is 3 times 24.", 72),
        ("#### 72 (48 in April and 24 in May)", 72),
        ("\\boxed{72 clips (48 + 24)}", 72),
    ],
    *[
        ("#### 72, because 48 + 24 = 72", 72),
        ("The answer is 72 since 48 + 24 is 72", 72),
        ("\\boxed{72\\text{ clips}}", 72),
    ],
    *[
        ("\\boxed{28 or 72}", None),
        ("\\boxed{not 72}", None),
        ("\\boxed{10:45}", None),
        ("#### 28, 72", None),
        ("\\boxed{70 to 72}", None),
    ],
    *[
        ("\\boxed{70-72}", None),
        ("\\boxed{70\u201372}", None),
        ("\\boxed{more than 72}", None),
        ("The answer isn't 72.", None),
    ],
    *[
        ("\\boxed{28} or \\boxed{72}", None),
        ("<answer>28 or 72</answer> so #### 72", None),
        ("\\boxed{twice 36}", None),
    ],
    *[
        ("Final answer: 72", 72),
        ("answer: 72", 72),
        ("ANSWER: 72", 72),
        ("**Answer**: 72", 72),
        ("Final Answer\n72", None),
    ],
    *[
        ("The final answer is $72$.", 72),
        ("Answer: $72,000", 72000),
        ("The answer to this is:\n72 eggs", 72),
        ("my answer was 72", None),
    ],
    *[(f"\\boxed{{{minus}5}}", -5) for minus in "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d-"],
    *[("\\boxed{negative 5}", -5), ("\\boxed{-$5}", -5), ("\\boxed{\\$-5}", -5), ("\\boxed{\u00b15}", None)],
    *[("\\boxed{1e4}", 10000), ("\\boxed{10 000}", 10000), ("\\boxed{2 million}", 2_000_000), ("\\boxed{1.5e3}", 1500)],
    *[
        ("\\boxed{1\u00a0234\u00a0567}", 1234567),
        ("\\boxed{3 dozen eggs}", 36),
        ("\\boxed{2.5 thousand}", 2500),
        ("\\boxed{5k}", None),
    ],
    *[
        ("\\boxed{1,200.50}", 1200.5),
        ("\\boxed{1.200.000}", None),
        ("\\boxed{2 1/2}", 2.5),
        ("\\boxed{\\frac{5}{2}}", 2.5),
    ],
    *[
        ("So \\boxed{72}. I used the \\boxed command as asked.", 72),
        ("So \\boxed{72}. It is in \\boxed{} as asked.", 72),
    ],
    *[
        ("So \\boxed{72}, in the \\boxed{answer} form.", 72),
        ("\\boxed{72} goes into \\boxed{...}", 72),
        ("So \\fbox{72}, see \\boxed form", 72),
    ],
    *[("\\boxed{72}. Use \\boxed a lot.", 72), ("$\\boxed 72$", 72), ("\\boxed{3}, no: $\\boxed 72$", 72)],
]


@pytest.mark.parametrize(("completion", "number"), NUMBERS)
def test_gsm8k_reads_the_number_that_is_stated(completion: str, number: float | None):
    candidates = [-5, 5, 24, 28, 36, 45, 48, 70, 72, 2, 2.5, 3.75, 10.75, number or 0]
    paid = [c for c in candidates if gsm8k.gsm8k_correct([completion], answer=[str(c)]) == [1.0]]
    assert set(paid) == (set() if number is None else {number})


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1000001", "1000000"),
        ("999999999999999999999", "1000000000000000000000"),
        ("18.4", "18"),
        ("0.33", "1/3"),
        ("5", "none"),
    ],
)
def test_gsm8k_pays_no_near_miss(answer: str, truth: str):
    assert gsm8k.gsm8k_correct([f"\\boxed{{{answer}}}"], answer=[truth]) == [0.0]


@pytest.mark.parametrize(
    ("answer", "truth"), [("1/3", "0.33"), ("18.333", "18.33"), ("1000000", "1e6"), ("72", "7 more\n#### 72")]
)
def test_gsm8k_pays_the_same_number(answer: str, truth: str):
    assert gsm8k.gsm8k_correct([f"\\boxed{{{answer}}}"], answer=[truth]) == [1.0]


def test_math_boxes_in_prose_and_in_pairs():
    completions = [
        "So \\boxed{72}. I used the \\boxed command.",
        "\\boxed{2} or \\boxed{3}",
        "\\boxed{2} and \\boxed{3}",
    ]
    assert competition.math_grades(completions, ["72", "2", "3, 2"]) == ["text", "no", "number"]
