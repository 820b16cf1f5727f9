"""A policy whose weights are shared out over the processes of a run (torch's FSDP2); how their passes keep in step.

Every forward of such a policy is a collective call: the weights of a block come from all processes when it is computed.
Processes have other rows and so other numbers of passes. Those that have none left make passes of a dummy canvas for
those that have, until none has: before each pass they agree on who passes (one number over the host's memory).

A rollout may hold the whole weights instead, gathered once: it then needs no agreement at all.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from stp_rs.distributed import Interrupted, least, world
from stp_rs.errors import ConfigError
from stp_rs.models.acceleration import repeated_blocks
from stp_rs.models.base import DiffusionModel, device_of, free_bytes, is_sharded, passes_without_dropout

_FAILED, _DONE = 0, 1 << 30
"""What a process says that has failed, or needs no pass; a policy's number, from 1, asks for a pass of it."""


class Idle:
    """What a block of passes made for other processes: 0, with a graph that their backward pass needs here too."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, value: Tensor) -> None:
        """Add the output of a pass of a dummy canvas."""
        zero = value.float().nan_to_num(0.0).sum() * 0.0
        self.total = zero if self.total is None else self.total + zero


class Steps:
    """The policies of a run whose weights are shared out, and the block of passes that the processes are in."""

    def __init__(self) -> None:
        self.policies: list[DiffusionModel] = []
        self.idle: Idle | None = None
        self.free = False
        """Whether every process holds the whole weights, so that a pass concerns nobody else."""

    def before_pass(self, number: int) -> None:
        """Make passes for other processes until it is this policy's turn; outside of a block all do the same anyway."""
        if self.idle is None or self.free:
            return
        while (chosen := least(number)) != number:
            self._stand_in(chosen)

    @contextlib.contextmanager
    def block(self, *, graded: bool = False) -> Iterator[Idle]:
        """Run a block of passes, each process its own number of them; a block within a block is a part of it.

        Args:
            graded: a backward pass follows, of the same number of passes in every process.
        """
        if self.idle is not None or self.free or world() == 1:
            yield self.idle or Idle()
            return
        self.idle = idle = Idle()
        try:
            try:
                yield idle
            except Interrupted:
                raise
            except Exception:
                least(_FAILED)
                raise
            with torch.set_grad_enabled(graded):
                while (chosen := least(_DONE)) != _DONE:
                    self._stand_in(chosen)
        finally:
            self.idle = None
            if not graded:
                self.reshard()

    def reshard(self) -> None:
        """Let every process hold its share of the weights only."""
        for policy in self.policies:
            for part in sharded_parts(policy.module):
                part.reshard()

    def _stand_in(self, chosen: int) -> None:
        if chosen == _FAILED:
            raise Interrupted("another process of the run failed in its passes")
        policy = self.policies[chosen - 1]
        ids_BS = torch.full((1, 2), policy.mask_token_id, device=device_of(policy))
        with passes_without_dropout(policy.module):
            hidden_BSH = policy.hidden(ids_BS, None)
        if torch.is_grad_enabled() and self.idle is not None:
            self.idle.add(policy.head(hidden_BSH[:, 0]))  # the head too: all weights have gradients, or none


class Sharded:
    """A `DiffusionModel` that is another one, whose module is shared out, with its passes kept in step."""

    def __init__(self, policy: DiffusionModel, steps: Steps, *, whole: str = "auto") -> None:
        self.policy, self.steps, self._whole = policy, steps, whole
        self.module: nn.Module = policy.module
        steps.policies.append(policy)
        self._number = len(steps.policies)
        self.mask_token_id, self.pad_token_id = policy.mask_token_id, policy.pad_token_id
        self.eos_token_id, self.logit_shift = policy.eos_token_id, policy.logit_shift
        self.respects_padding = policy.respects_padding

    def __getattr__(self, name: str) -> Any:
        """Return the policy's trait of this name; a pass of it keeps in step."""
        found = getattr(self.__dict__["policy"], name)
        if name not in ("hidden_pair", "hidden_cached"):
            return found

        def kept(*args: Any, **kwargs: Any) -> Any:
            self.steps.before_pass(self._number)
            return found(*args, **kwargs)

        return kept

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return the policy's hidden states [B, S, H]."""
        self.steps.before_pass(self._number)
        return self.policy.hidden(ids_BS, lengths_B)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return the policy's logits [N, V]; a pass came before, and the root of the weights is still whole."""
        return self.policy.head(hidden_NH)

    def in_step(self, *, graded: bool = False) -> contextlib.AbstractContextManager[Idle]:
        """Run a block of passes, each process its own number of them."""
        return self.steps.block(graded=graded)

    @contextlib.contextmanager
    def rollout_weights(self) -> Iterator[None]:
        """Hold the whole weights in a block of rollouts where they fit every process, as configured."""
        steps, parts = self.steps, sharded_parts(self.module)
        if steps.free or steps.idle is not None or not self._fits():
            yield
            return
        inner = [(part, _reshards(part)) for part in parts[1:]]
        try:
            for part in parts:
                part.unshard()
            for part, _ in inner:
                part.set_reshard_after_forward(False, recurse=False)
            steps.free = True
            yield
        finally:
            steps.free = False
            for part, after in inner:
                part.set_reshard_after_forward(after, recurse=False)
            steps.reshard()

    def _fits(self) -> bool:
        """Return whether every process has room for the whole weights."""
        if self._whole != "auto":
            return self._whole == "rollout"
        need = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return bool(least(int(free_bytes(device_of(self)) > 1.5 * need)))


def sharded_parts(module: nn.Module) -> list[Any]:
    """Return the modules that FSDP2 manages, the root first."""
    return [part for part in module.modules() if is_sharded(part)]


def _reshards(part: Any) -> bool:
    """Return whether a block gives its weights back after its forward."""
    return bool(getattr(part, "_stp_reshards", True))


def shard(policy: DiffusionModel, config: Mapping[str, Any], *, bf16: bool, steps: Steps, whole: str) -> Sharded:
    """Return the policy with its module's weights shared out, in place: by repeated block, and the rest together.

    Args:
        policy: one that is not shared out, the same in every process; the module of one that is stays as it is.
        config: `fsdp_config`.
        bf16: compute in bfloat16, and add up gradients in float32.
        steps: what keeps passes in step.
        whole: `stp_rollout_gather`.

    Raises:
        ConfigError: a key of `fsdp_config` that has no meaning here, or a class that the network does not have.
    """
    if not is_sharded(policy.module):
        _fully_shard(policy.module, config, bf16=bf16)
    for part in sharded_parts(policy.module):
        if hasattr(part, "set_reduce_scatter_unused_params"):  # experts that only some processes used
            part.set_reduce_scatter_unused_params(True, recurse=False)
    return Sharded(policy, steps, whole=whole)


def _fully_shard(module: nn.Module, config: Mapping[str, Any], *, bf16: bool) -> None:
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
    except ImportError as error:
        raise ConfigError(f"fsdp: got torch {torch.__version__}, needs 2.6 or newer") from error
    device = next(module.parameters()).device.type
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device, (world(),)),
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if config.get("cpu_offload") else OffloadPolicy(),
    }
    after = bool(config.get("reshard_after_forward", True))
    for block in _blocks(module, config.get("transformer_layer_cls_to_wrap")):
        fully_shard(block, reshard_after_forward=after, **options)
        cast(Any, block)._stp_reshards = after
    fully_shard(module, reshard_after_forward=False, **options)  # the head is applied after the root's forward


def _blocks(module: nn.Module, names: Any) -> list[nn.Module]:
    if not names:
        return repeated_blocks(module)
    wanted = [names] if isinstance(names, str) else list(names)
    found = [part for part in module.modules() if type(part).__name__ in wanted]
    if not found:
        raise ConfigError(
            f"fsdp_config transformer_layer_cls_to_wrap: got {', '.join(wanted)}, which {type(module).__name__} does "
            f"not have; its blocks are {', '.join(sorted({type(b).__name__ for b in repeated_blocks(module)}))}"
        )
    return found


# what a checkpoint holds


def whole(value: Tensor) -> Tensor:
    """Return a tensor with all processes' shares of it, on the CPU where it was shared out; all processes call it."""
    made = getattr(value, "full_tensor", None)
    return cast(Tensor, made()).cpu() if callable(made) else value


def whole_state(state: Any, *, keep: bool) -> Any:
    """Return a state dict, nested as it is, with whole tensors; all processes call it, one by one tensor.

    Args:
        state: of a module or an optimiser.
        keep: whether this process needs it; the others get None in place of tensors.
    """
    if isinstance(state, Tensor):
        made = whole(state.detach())
        return made if keep else None
    if isinstance(state, Mapping):
        return {key: whole_state(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value, keep=keep) for value in state)
    return state


@torch.no_grad()
def shared_as(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of a whole tensor, laid out as `like`; the tensor itself where that is whole."""
    placements = getattr(like, "placements", None)
    if placements is None or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = cast(Any, like).device_mesh
    return distribute_tensor(value.to(mesh.device_type, like.dtype), mesh, placements, src_data_rank=None)


def shared_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict of an optimiser of whole parameters for one of parameters that are shared out."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {
        number: {
            name: shared_as(value, parameters[int(number)]) if isinstance(value, Tensor) else value
            for name, value in of_one.items()
        }
        for number, of_one in state["state"].items()
    }
    return {**state, "state": kept}


@torch.no_grad()
def fill(module: nn.Module, whole_values: Mapping[str, Tensor]) -> list[str]:
    """Put whole weights into a module that is shared out; return the names of its weights that were not given."""
    missing = []
    for name, there in module.state_dict().items():
        if name in whole_values:
            there.copy_(shared_as(whole_values[name], there))
        else:
            missing.append(name)
    return missing
