"""Every function, method and constructor of the core with every argument at its extremes: typed errors, in time."""

import pytest

from stp_rs import errors
from tests.reliability import calls
from tests.reliability.arguments import ENTRIES


def test_the_stub_is_read_whole_and_every_entry_works_at_a_stage_of_its_object() -> None:
    """A new function is called by itself; what annotations do not say of a right call stands in `arguments.GIVEN`."""
    names = {str(entry).removesuffix(".__new__") for entry in ENTRIES}
    assert names >= {"permutation", "RolloutScheduler.commit", "Design", "PriorSet.num_anchors", "countdown_solutions"}
    for entry in ENTRIES:
        worked = 0
        for stage in calls.stages(entry):
            try:
                calls.right_call(entry, stage).make()
            except errors.StpError:
                continue
            worked += 1
        assert worked, f"{entry}: its right call is refused; tell arguments.GIVEN what it needs"


def test_no_argument_at_its_extremes_ends_the_process_hangs_or_raises_what_is_not_ours() -> None:
    ended, wrong = calls.run(patience=800)
    assert wrong == []
    assert ended["returned"] > 1500
    assert ended["typed error"] > 5000


@pytest.mark.parametrize("seed", [0])
def test_arguments_of_all_kinds_together_do_neither(seed: int) -> None:
    """`make fuzz` makes a million of these calls."""
    ended, wrong = calls.run(3000, seed=seed, patience=800)
    assert wrong == []
    assert min(ended["returned"], ended["typed error"]) > 900
