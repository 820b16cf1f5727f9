"""What tells weights from others: every bit, wherever they lie."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stp_rs._core import row_uid
from stp_rs.models import content
from stp_rs.models.content import content_digest
from stp_rs.priors.hashes import policy_hash
from tests.devices import DEVICES, MARKS

SIZES = (0, 1, 3, 4, 1000, 65_536, 65_537, 200_001)
pytestmark = MARKS
TYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int64)


def made(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 200, (size,), generator=torch.Generator().manual_seed(size)).to(dtype)


@given(st.sampled_from(SIZES[1:]), st.sampled_from(TYPES), st.data())
def test_every_bit_is_told(size: int, dtype: torch.dtype, data: st.DataObject):
    values = made(size, dtype)
    before = content_digest(values)
    bits = values.view(torch.uint8)
    bits[data.draw(st.integers(0, bits.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert content_digest(values) != before


@given(st.sampled_from(SIZES[2:]), st.data())
def test_what_changes_places_is_told(size: int, data: st.DataObject):
    values = torch.arange(size, dtype=torch.float32)
    before = content_digest(values)
    a, b = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    values[[a, b]] = values[[b, a]]
    assert (content_digest(values) == before) == (a == b)


def test_two_flips_of_the_highest_bit_do_not_hide_each_other():
    values = torch.ones(100)
    values[[3, 70]] = -1
    assert content_digest(values) != content_digest(torch.ones(100))


def splitmix(number: int) -> int:
    """Return output `number` of SplitMix64 (Steele et al. 2014) with seed 0, in Python's integers."""
    mixed = number * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


@pytest.mark.parametrize("size", [1, 10, 65_536, 131_075])
def test_the_sums_are_those_of_the_definition(size: int):
    """Checkpoints keep them: a run of another version must find its weights to be the same."""
    words = [row_uid(5, place) % 2**32 - 2**31 for place in range(size)]
    parts = [words[start : start + 65_536] for start in range(0, size // 65_536 * 65_536 + 1, 65_536)]
    sums = [
        sum(word * (splitmix(place + (stream << 32)) | 1) for place, word in enumerate(part)) % 2**64
        for part in parts
        for stream in (1, 2)
    ]
    found = content_digest(torch.tensor(words, dtype=torch.int32))
    assert found == b"".join(number.to_bytes(8, "little") for number in sums)


def test_a_policy_with_rows_of_zeros_more_is_another():
    small, large = torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(8, 6, bias=False)
    with torch.no_grad():
        large.weight.zero_()
        large.weight[:4] = small.weight
    kinds: list[Any] = [SimpleNamespace(module=module) for module in (small, large)]
    assert policy_hash(kinds[0]) != policy_hash(kinds[1])


def test_views_are_read_as_they_look():
    whole = torch.arange(3000, dtype=torch.bfloat16).view(50, 60)
    for view in (whole.T, whole[1:, 3:], whole[::7], whole.view(-1)[1:-1]):
        assert content_digest(view) == content_digest(view.clone(memory_format=torch.contiguous_format))


def test_bytes_at_an_odd_place_are_read():
    buffer = bytearray(range(64))
    odd = torch.frombuffer(buffer, dtype=torch.uint8, offset=2)[2:18]
    assert content_digest(odd) == content_digest(odd.clone())


@pytest.mark.parametrize("size", [200_001, 1_000_001])
@pytest.mark.parametrize("at_once", [2, 7, 256])
def test_how_many_sums_are_made_at_once_changes_nothing(size: int, at_once: int, monkeypatch: pytest.MonkeyPatch):
    values = made(size, torch.int64)
    before = content_digest(values)
    monkeypatch.setitem(content._AT_ONCE, "cpu", at_once)
    assert content_digest(values) == before


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_device_says_the_same(name: str, dtype: torch.dtype):
    values = made(20_000_001, dtype)  # more than are summed at once, in every type
    assert content_digest(values.to(name)) == content_digest(values)
