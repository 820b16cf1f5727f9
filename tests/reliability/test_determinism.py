"""The determinism matrix compares runs of one thread, whatever the machine and its variables say."""

import pytest
import torch

from tests.reliability import determinism


def test_every_run_of_the_matrix_in_this_process_has_one_thread(monkeypatch: pytest.MonkeyPatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(determinism, "weights", lambda *_, **__: seen.append(torch.get_num_threads()) or [0.0])
    monkeypatch.setattr(determinism, "elsewhere", lambda *_: [0.0])
    torch.set_num_threads(2)
    try:
        found = determinism.matrix()
    finally:
        torch.set_num_threads(before)
    assert len(found) > 10
    assert set(seen) == {1}
