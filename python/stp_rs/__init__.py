"""Reinforcement learning of masked-diffusion language models with spatio-temporal pruning."""

from stp_rs._core import __version__ as __version__
