"""What the processes of these tests run: a trainer of a tiny policy, and what it computed, as plain arrays."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from stp_rs import Template, distributed
from stp_rs.eval.forecast import _distinct, forecast
from stp_rs.models import base
from stp_rs.models.sharding import whole_state
from stp_rs.train.trainer import STPTrainer
from tests.fixtures import LENGTH, Watch, ones, tiny, tokenizer, trainer

STEADY: dict[str, Any] = {
    "max_completion_length": LENGTH,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 5,
    "stp_rollouts": 5,
    "learning_rate": 1e-3,
    # biases of attention's keys have a gradient of 0 but for rounding, which a smaller number would blow up to a step
    "adam_epsilon": 1e-4,
    "logging_steps": 1,
    "use_cpu": True,
}
"""Five rollout batches of twenty completions: five groups and five micro-batches, which two or three share unevenly."""
PROMPTS = [{"prompt": f"{i % 4}{'[0123]'[: i % 5]}{i // 4}"} for i in range(15)]
"""Fifteen different ones, of several lengths, so that no prompt is twice in a batch."""


def made(folder: Path, *, seconds: float, layers: int = 2, dropout: float = 0.1, **options: Any) -> STPTrainer:
    """Return a trainer with a template."""
    template = Template({0: "[", -1: "]"}, tokenizer())
    adapters = options.pop("adapters", False)
    base.HEAD_ELEMENTS = options.pop("head_elements", base.HEAD_ELEMENTS)  # this process ends with its scenario
    chosen = {**STEADY, "ddp_timeout": int(seconds), **options}
    reward = chosen.pop("reward", ones)
    policy: Any = tiny(layers=layers, dropout=dropout)
    if adapters:
        policy = adapted(policy.module)
    return trainer(folder, policy, reward, priors=[template], rows=PROMPTS, **chosen)


def adapted(module: Any) -> Any:
    """Return a policy's module with LoRA on its attention."""
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return peft.get_peft_model(module, peft.LoraConfig(r=4, target_modules=["query", "value"]))


def weights(policy: STPTrainer) -> dict[str, np.ndarray[Any, Any]]:
    """Return the policy's parameters."""
    state = whole_state(dict(policy.model.named_parameters()), keep=True)
    return {name: value.detach().numpy().copy() for name, value in state.items()}


def told(policy: STPTrainer, **train: Any) -> dict[str, Any]:
    """Train; return the rollouts, the metrics of each and the weights at the end."""
    steps: list[dict[str, Any]] = []

    def hear(result: Any) -> None:
        rollout = result.rollout
        columns = {name: getattr(rollout, name) for name in ("token_ids", "unmask_step", "nfe", "reward", "advantage")}
        steps.append(
            {
                **columns,
                "uid": rollout.uid,
                "texts": result.completions,
                "extra": result.extra,
                "metrics": result.metrics,
            }
        )

    policy.add_callback(Watch(hear))
    policy.train(**train)
    return {"steps": steps, "weights": weights(policy), "log": policy.state.log_history}


def passes(folder: Path, *, seconds: float, **options: Any) -> list[tuple[int, int]]:
    """Return rows and columns of each pass with gradient that this process made in one rollout batch's updates."""
    policy = made(folder, seconds=seconds, reward=_distinct, stp_rollouts=1, **options)
    found: list[tuple[int, int]] = []

    def note(_module: Any, _args: Any, kwargs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            found.append(tuple(output[0].shape[:2]))

    policy.model.register_forward_hook(note, with_kwargs=True)
    policy.train()
    return found


def forecast_of(folder: Path, *, seconds: float, processes: int, **options: Any) -> Any:
    """Return the forecast of the run of `passes`, by several processes."""
    args = made(folder, seconds=seconds, stp_rollouts=1, **options).args
    template = Template({0: "[", -1: "]"}, tokenizer())
    return forecast(args, PROMPTS, tokenizer(), policy=tiny(), priors=[template], processes=processes)


def evaluate(folder: Path, *, seconds: float, **options: Any) -> Any:
    """Return the metrics of an evaluation, and the completions in their order."""
    policy = made(folder, seconds=seconds, **options)
    found = policy.predict(PROMPTS[:7])
    return found.metrics, found.predictions


def train(folder: Path, *, seconds: float, resume: bool = False, stop: int = 0, **options: Any) -> dict[str, Any]:
    """Train as configured, or until it crashes after an update; every process tells what it saw."""
    policy = made(folder, seconds=seconds, **options)
    if not stop:
        return told(policy, resume_from_checkpoint=True if resume else None)
    policy.add_callback(Watch(lambda result: _crash(result.step >= stop)))
    try:
        return told(policy)
    except _CrashError:  # in every process
        return {}


class _CrashError(Exception):
    pass


def _crash(now: bool) -> None:
    if now:
        raise _CrashError


def logs(folder: Path, *, seconds: float, **options: Any) -> dict[str, Any]:
    """Train for one rollout batch on a reward that logs, and that fails on some completions."""

    def reward(completions: Sequence[str], log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
        if len(completions) > 1:
            log_metric("length", sum(map(len, completions)) / len(completions))
            log_extra("length", list(map(len, completions)))
        if any("1" in text for text in completions):
            raise ValueError("a grader that does not know the digit 1")
        return ones(completions)

    return told(made(folder, seconds=seconds, reward=reward, stp_rollouts=1, stp_reward_errors="skip", **options))


def alarmed(folder: Path, *, seconds: float, action: str, **options: Any) -> dict[str, Any]:
    """Train with an alarm that goes off once, after the second rollout batch; return what followed in this process."""
    policy = made(folder, seconds=seconds, save_strategy="steps", save_steps=1, stp_on_alarm=action, **options)
    counted = policy.alarms.batch
    policy.alarms.batch = lambda metrics, step: counted(  # type: ignore[method-assign] # a bound that is broken once
        {**metrics, "kl": 1e3 if step >= 3 and not policy.alarms.rollbacks else 0.0}, step
    )
    found = told(policy)
    return {**found, "history": policy.alarms.history, "rate": policy._rate}


def diverges(folder: Path, *, seconds: float, rank: int, fault: str, action: str, **options: Any) -> dict[str, Any]:
    """Train with one process that meets a NaN in the second rollout batch; return what followed in this process."""
    policy = made(folder, seconds=seconds, save_strategy="steps", save_steps=1, stp_on_alarm=action, **options)

    def now() -> bool:
        return policy.state.global_step == 2 and not policy.alarms.rollbacks and distributed.rank() == rank

    def logits(_module: Any, _args: Any, output: Any) -> Any:
        return output.masked_fill(torch.ones_like(output, dtype=torch.bool), torch.nan) if now() else output

    def weight(*_: Any) -> None:
        parameter: Any = next(policy.model.parameters())
        if now():
            getattr(parameter, "_local_tensor", parameter).data.view(-1)[0] = torch.nan

    if fault == "logits":
        policy.model.get_output_embeddings().register_forward_hook(logits)
    elif fault == "weights":
        policy.add_callback(Before(weight))
    else:
        parameter = next(policy.model.parameters())
        parameter.register_hook(lambda gradient: gradient * torch.nan if now() else gradient)
    return {**told(policy), "history": policy.alarms.history, "rate": policy._rate}


class Before(TrainerCallback):
    """Acts before each optimiser update."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Act."""
        self.act()


def fails(folder: Path, *, seconds: float, rank: int, where: str, **options: Any) -> dict[str, Any]:
    """Train with one process that raises: in its reward, in a callback, while it saves, or in a pass of its model."""
    this = int(os.environ["RANK"]) == rank

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        if this and where == "reward":
            raise ValueError("the grader of this process is broken")
        return ones(completions)

    policy = made(folder, seconds=seconds, reward=reward, save_strategy="steps", save_steps=1, **options)
    if this and where == "pass":
        policy.model.register_forward_hook(_broken)
    if this and where == "callback":
        policy.add_callback(Watch(_broken))
    if this and where == "save":
        policy.parts_to_save = lambda: {"part": _broken}  # type: ignore[method-assign] # a disk that is full
    return told(policy)


def _broken(*_: Any) -> None:
    raise ValueError("the grader of this process is broken")


def dies(folder: Path, *, seconds: float, rank: int, how: str, **options: Any) -> dict[str, Any]:
    """Train with one process that is killed in the third rollout batch, or that stops to answer."""
    calls: list[int] = []

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        if distributed.rank() == rank and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        return ones(completions)

    return told(made(folder, seconds=seconds, reward=reward, **options))
