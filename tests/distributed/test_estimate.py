"""The estimate of a run of several processes counts the passes that its busiest process makes."""

from pathlib import Path

from tests.distributed.launch import launch, results
from tests.distributed.scenarios import forecast_of


def test_the_passes_of_an_update_are_those_of_the_busiest_process(tmp_path: Path):
    options = {"num_iterations": 2, "preset": "espo"}  # whose masks depend on no trajectory
    every = results(launch("passes", 2, tmp_path / "run", **options))
    found, alone = (forecast_of(tmp_path / str(n), seconds=60, processes=n, **options) for n in (2, 1))
    graded = [(call.canvases, call.tokens) for call in found.calls if call.phase == "gradient"]
    busiest = max(every, key=lambda passes: sum(rows * columns for rows, columns in passes))
    assert graded == [(rows, rows * columns) for rows, columns in busiest]
    assert sorted(map(len, every)) == [4, 6], "of five micro-batches, at two inner iterations"
    assert len([call for call in alone.calls if call.phase == "gradient"]) == 10
    assert found.largest == alone.largest
    assert found.cost == alone.cost
