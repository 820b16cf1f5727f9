"""Devices that tests of a device run on: the CPU everywhere, so that their logic is tried, and CUDA where it is."""

import pytest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
MARKS = [
    # what drivers, compilers and profilers of a card's machine warn of when they are imported is not ours to mend
    pytest.mark.filterwarnings("default"),
]
