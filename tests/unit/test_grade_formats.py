"""Rewards for layout and length."""

import pytest

from stp_rs import tasks
from stp_rs.errors import ConfigError

FULL = "<reasoning>\na\n</reasoning>\n<answer>\n1\n</answer><|eot_id|><|endoftext|>"
CUT = FULL.removeprefix("<reasoning>")


def test_tags():
    share, strict = tasks.tag_share(), tasks.tag_strict()
    assert share([FULL, CUT, "1", "</answer><answer>"]) == [1.0, 0.75, 0.0, 0.25]
    assert strict([FULL, "so " + FULL, CUT, FULL + "1"]) == [1.0, 0.0, 0.0, 1.0]
    assert tasks.tag_strict(prefilled=True)(completions=[CUT, FULL], prompts=["", ""]) == [1.0, 0.0]
    assert tasks.tag_share(tags=("a",))([[{"role": "assistant", "content": "<a></a>"}]]) == [1.0]
    assert share.__name__ == "tag_share_reward"


def test_length_penalty():
    reward = tasks.length_penalty(max_length=10, buffer=4)
    assert reward(["x" * n for n in (0, 6, 8, 10, 99)]) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert reward(["x", "x"], completion_ids=[[1] * 9, [1] * 6]) == [-0.75, 0.0]
    for buffer in (0, 11):
        with pytest.raises(ConfigError, match="buffer"):
            tasks.length_penalty(max_length=10, buffer=buffer)
