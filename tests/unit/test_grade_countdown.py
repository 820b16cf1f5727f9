"""Known answers of the Countdown grader, and the defects of published graders it does not share."""

import numpy as np
import pytest

from stp_rs import _core
from stp_rs.errors import ConfigError, ShapeError
from stp_rs.tasks.countdown import countdown_format, countdown_solved, countdown_verdicts

CASES = {
    "[55-53+49]": "solved",
    "<answer>\n\\boxed{49 + (55 - 53)}\n</answer><|eot_id|><|endoftext|>": "solved",
    "55 \u2212 53 + 49": "solved",
    "<answer>(55 - 53) + 49 = 51</answer>": "solved",
    "<answer>\\left(55 - 53\\right) + 49 = 51.0</answer>": "solved",
    "<answer>{55 - [53 - 49]} = 51</answer>": "solved",
    "<answer>55 - 53 + 49 = 52</answer>": "wrong_statement",
    "[55+53+49]": "wrong_value",
    "[55+53]": "wrong_numbers",
    "[51]": "wrong_numbers",
    "[49/(53-53)+55]": "undefined",
    "[55-53+49": "malformed",
    "55-53+49 is 51": "malformed",
    "88**77**66": "malformed",
    "__import__('os').system('true')": "malformed",
    "<answer></answer>": "missing",
    "": "missing",
}


@pytest.mark.parametrize(("text", "want"), CASES.items())
def test_verdicts(text: str, want: str):
    assert countdown_verdicts([text], [[55, 53, 49]], [51]) == [want]


def test_a_decimal_is_not_two_numbers():
    assert countdown_verdicts(["[2*3.4]"], [[2, 3, 4]], [6]) == ["malformed"]


def test_values_are_exact():
    assert countdown_verdicts(["[1/3*3]"], [[1, 3, 3]], [1]) == ["solved"]
    assert countdown_verdicts(["[7/2]"], [[7, 2]], [3]) == ["wrong_value"]


def test_rewards_read_their_columns():
    columns = {"numbers": [[1, 2], [1, 2], [1, 2]], "target": [3, 3, 3]}
    assert countdown_solved(["[1+2]", "[2-1]", "[3]"], **columns) == [1.0, 0.0, 0.0]
    assert countdown_format(completions=["[1+2]", "[2-1]", "[3]"], prompts=None, **columns) == [0.1, 0.1, 0.0]
    with pytest.raises(ConfigError, match="column 'target'"):
        countdown_solved(["[1]"], numbers=[[1]])
    with pytest.raises(ConfigError, match="2 values for 1 completions"):
        countdown_solved(["[1]"], numbers=[[1], [2]], target=[1])


def test_batches_of_unequal_length_are_refused():
    with pytest.raises(ShapeError, match="numbers"):
        _core.countdown_grade(["a"], [], [1], np.zeros(1, dtype=np.uint8))


@pytest.mark.parametrize(
    ("numbers", "target"), [("[3, 8]", "24"), ("3, 8", 24.0), ((3, 8), "24.0"), ("3 8", 24), ([3.0, "8"], " 24 ")]
)
def test_numbers_and_targets_may_be_text(numbers: object, target: object):
    assert countdown_solved(["[3*8]", "[3+8]"], numbers=[numbers] * 2, target=[target] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("numbers", "target"),
    [
        ([3, 8], 24.5),
        ([3, 8], "24.5"),
        ([3.5, 8], 24),
        ("[3, x]", 24),
        ("", 24),
        ([3, 8], None),
        ([3, 8], float("inf")),
        (38, 24),
    ],
)
def test_what_is_no_whole_number_is_refused_and_shown(numbers: object, target: object):
    with pytest.raises(ConfigError, match="countdown: numbers or target"):
        countdown_solved(["[3*8]"], numbers=[numbers], target=[target])
