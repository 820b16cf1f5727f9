"""Reinforcement learning of masked-diffusion language models with spatio-temporal pruning.

The pipeline, and what makes each part; help(stp_rs.NAME) says more of any of them, repr() draws what they return:

    a policy      load(name_or_path), as_diffusion_model(module, tokenizer) -> DiffusionModel, MaskedLMAdapter
    prompts       encode_prompts(rows, tokenizer, uids=...) -> PromptBatch; .repeat(8) makes groups
    priors        Template, Copy, Length, Vocabulary, Hint, Frequency, OfflineGeneration, FirstForward: tokens that are
                  known before decoding; compose_priors(...) -> PriorSet, allowed_tokens(...)
    a plan        Unmasking(20, temporal="steps:0.6"): how many tokens each forward reveals, and when the rest goes
    rollout       generate(model, prompts, unmasking, ...) -> Rollout, one record of completions; SamplingParams, GREEDY
                  and Batching say how tokens are drawn and forwards are filled; decode_completions(...) -> texts
    rewards       score_rewards([function], texts, rows); a function is `reward(completions, prompts, **columns)`
    advantages    group_advantages(rewards, group)
    likelihood    draw_masks(Design("spread", 2), rollout) -> Masks, token_elbo(model, rollout, masks);
                  replay_logprobs, state_at: what the rollout saw
    loss          policy_loss(LossInputs(...), LossConfig()) -> loss, metrics

All of it at once, as TRL's GRPOTrainer does it, with a report at the end:

    STPTrainer(model, [reward], STPConfig(preset="stp", ...), rows, processing_class=tokenizer).train()

In a shell: `stp-rs train`, `eval`, `report`, `watch`, ... (`stp-rs --help`). Errors of ours are `StpError`s, and the
standard class as well. Docs: README.md, ARCHITECTURE.md, docs/; a loop by hand: examples/custom_loop.py.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stp_rs._core import Design as Design
from stp_rs._core import PriorSet as PriorSet
from stp_rs._core import Unmasking as Unmasking
from stp_rs._core import __version__ as __version__
from stp_rs._renamed import check_name
from stp_rs.errors import StpError as StpError

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig as STPConfig
    from stp_rs.data.prompts import PromptBatch as PromptBatch
    from stp_rs.data.prompts import encode_prompts as encode_prompts
    from stp_rs.data.trajectories import Rollout as Rollout
    from stp_rs.models.base import DiffusionModel as DiffusionModel
    from stp_rs.models.loading import load as load
    from stp_rs.models.masked_lm import MaskedLMAdapter as MaskedLMAdapter
    from stp_rs.models.masked_lm import as_diffusion_model as as_diffusion_model
    from stp_rs.objective.advantages import group_advantages as group_advantages
    from stp_rs.objective.likelihood import token_elbo as token_elbo
    from stp_rs.objective.loss import LossInputs as LossInputs
    from stp_rs.objective.loss import policy_loss as policy_loss
    from stp_rs.objective.masks import Masks as Masks
    from stp_rs.objective.masks import draw_masks as draw_masks
    from stp_rs.objective.replay import replay_logprobs as replay_logprobs
    from stp_rs.objective.replay import state_at as state_at
    from stp_rs.priors import Copy as Copy
    from stp_rs.priors import Frequency as Frequency
    from stp_rs.priors import Hint as Hint
    from stp_rs.priors import Length as Length
    from stp_rs.priors import Template as Template
    from stp_rs.priors import Vocabulary as Vocabulary
    from stp_rs.priors import allowed_tokens as allowed_tokens
    from stp_rs.priors import compose_priors as compose_priors
    from stp_rs.rollout.generate import generate as generate
    from stp_rs.rollout.loop import Batching as Batching
    from stp_rs.rollout.params import GREEDY as GREEDY
    from stp_rs.rollout.params import SamplingParams as SamplingParams
    from stp_rs.rollout.rewards import decode_completions as decode_completions
    from stp_rs.rollout.rewards import score_rewards as score_rewards
    from stp_rs.train.anchors import FirstForward as FirstForward
    from stp_rs.train.anchors import OfflineGeneration as OfflineGeneration
    from stp_rs.train.trainer import STPTrainer as STPTrainer

_LAZY = {
    "config.arguments": "STPConfig",
    "data.prompts": "PromptBatch encode_prompts",
    "data.trajectories": "Rollout",
    "models.base": "DiffusionModel",
    "models.loading": "load",
    "models.masked_lm": "MaskedLMAdapter as_diffusion_model",
    "objective.advantages": "group_advantages",
    "objective.likelihood": "token_elbo",
    "objective.loss": "LossInputs policy_loss",
    "objective.masks": "Masks draw_masks",
    "objective.replay": "replay_logprobs state_at",
    "priors": "Copy Frequency Hint Length Template Vocabulary allowed_tokens compose_priors",
    "rollout.generate": "generate",
    "rollout.loop": "Batching",
    "rollout.params": "GREEDY SamplingParams",
    "rollout.rewards": "decode_completions score_rewards",
    "train.anchors": "FirstForward OfflineGeneration",
    "train.trainer": "STPTrainer",
}
"""Names by module, imported when they are asked for: most need torch, some transformers, which take seconds."""


def __getattr__(name: str) -> Any:
    """Return a name of `_LAZY` from its module."""
    check_name(name)
    for module, names in _LAZY.items():
        if name in names.split():
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return every public name, imported yet or not."""
    return [*globals(), *(name for names in _LAZY.values() for name in names.split())]
