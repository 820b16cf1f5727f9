"""`STPConfig`: every option, flat, on transformers' TrainingArguments; and `TaskConfig`, what the command line reads.

    STPConfig(preset="espo", learning_rate=1e-6, output_dir="out")

An option is what was given for it, else what the pruning or the preset decides, else its default.
"""

import copy
import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from transformers.training_args import TrainingArguments

from stp_rs import distributed
from stp_rs.config.explained import EXPLAINED
from stp_rs.config.known import INHERITED, REFUSED
from stp_rs.config.limits import check
from stp_rs.config.listing import unknown_option
from stp_rs.config.options import Help, Option, plain_type
from stp_rs.config.presets import PRESETS, PRUNINGS, TASK
from stp_rs.config.sections import (
    AdvantageConfig,
    AlarmConfig,
    AlgorithmConfig,
    DataConfig,
    DeviceConfig,
    LikelihoodConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PolicyConfig,
    ProcessesConfig,
    PruningConfig,
    RolloutConfig,
    TaskSection,
)
from stp_rs.config.yaml import read_yaml
from stp_rs.errors import ConfigError
from stp_rs.text import one_of

Made = TypeVar("Made", bound=type)
_FIELDS = "__dataclass_fields__"
_DECIDED = {name for chosen in (*PRESETS.values(), *PRUNINGS.values(), TASK) for name in chosen} - {"pruning"}
_DECIDED |= {"max_steps", "num_train_epochs", "logging_steps", "save_steps"}
"""Options that a preset, a pruning or a task decides where they are not given."""


def _undecided(cls: Made) -> Made:
    """Make None ("not given") the default of every option that a preset may decide; parsers then pass None on."""
    hints = typing.get_type_hints(cls)
    inherited = {name: f for base in reversed(cls.__mro__[1:]) for name, f in vars(base).get(_FIELDS, {}).items()}
    for name in sorted(_DECIDED & inherited.keys()):
        cls.__annotations__ = {**inspect.get_annotations(cls), name: hints[name] | None}
        setattr(cls, name, dataclasses.field(default=None, metadata=inherited[name].metadata))
    return cls


def _explained(cls: Made) -> Made:
    """Let the constructor refuse an argument that is no option in words of ours, and one that is none of its values."""
    made: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(made)
    def init(self: Any, *args: Any, **options: Any) -> None:
        known = [field.name for field in dataclasses.fields(self)]
        for name in [name for name in options if name not in known]:
            if name not in REFUSED or options[name]:
                raise unknown_option(name, known)
            del options[name]  # what it asks for is how things are here
        made(self, *args, **options)

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_explained
@dataclass(repr=False)
@_undecided
class STPConfig(  # type: ignore[misc] # bf16 and gradient_checkpointing may be None there, and are decided here
    AlgorithmConfig,
    RolloutConfig,
    PruningConfig,
    AdvantageConfig,
    LikelihoodConfig,
    LossConfig,
    OptimConfig,
    DataConfig,
    LoggingConfig,
    AlarmConfig,
    DeviceConfig,
    ProcessesConfig,
    ModelConfig,
    TrainingArguments,
):
    """Every option of a run by its flat name, as TRL's GRPOConfig; a function that reads a section's takes that class.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a wrong type or a value out of range.
    """

    _COMMON: ClassVar[Mapping[str, Any]] = {}
    """Defaults that stand below a preset's and above a field's own."""

    def __post_init__(self) -> None:
        """Fill in what was not given, check everything, and let transformers do the same with its own options."""
        self._take_defaults()
        self.scale_rewards = {True: "group", False: "none"}.get(self.scale_rewards, self.scale_rewards)  # type: ignore[call-overload]
        resume: Any = self.resume_from_checkpoint
        if isinstance(resume, bool):
            self.resume_from_checkpoint = "true" if resume else "none"
        self.stp_length = str(self.stp_length)  # a bare number of tokens in YAML
        for known in options(type(self)).values():
            setattr(self, known.name, known.check(getattr(self, known.name)))
        _refuse(self)
        if self.bf16 is None and os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
            self.bf16 = True
        if self.bf16 is None:
            self.bf16 = self._setup_devices.type == "cuda" and torch.cuda.is_bf16_supported()
        if hasattr(self, "activation_checkpointing"):  # what transformers 5.20 calls gradient_checkpointing
            if self.activation_checkpointing is None:
                self.activation_checkpointing = self.gradient_checkpointing
            self.gradient_checkpointing = None  # type: ignore[assignment]
        take_launcher(self)
        (report_to, use_cpu), sharding = (self.report_to, self.use_cpu), (self.fsdp, self.fsdp_config)
        # transformers would make accelerate's plugin of it, and 4.57 options that nobody gave
        self.fsdp = self.fsdp_config = None
        self.report_to = "none" if report_to is None else report_to
        self.use_cpu = self._setup_devices.type == "cpu"  # what transformers checks bf16 against
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from error
        self.use_cpu, (self.fsdp, self.fsdp_config) = use_cpu, sharding
        self._count_batches()
        check(self)

    def _take_defaults(self) -> None:
        for name, known in (("preset", PRESETS), ("pruning", PRUNINGS)):
            value = getattr(self, name)
            if value not in known and not (name == "pruning" and value is None):
                raise ConfigError(f"{name}: got {value!r}, {one_of(value, known)}")
        chosen = PRESETS[self.preset]
        self.pruning = self.pruning or chosen.get("pruning", "none")
        decided = {**self._COMMON, **chosen, **PRUNINGS[self.pruning]}
        given: Any = self
        if given.max_steps is not None or given.num_train_epochs is not None:
            decided.pop("stp_rollouts", None)
        if given.stp_design not in (None, decided.get("stp_design")):
            decided.pop("stp_truncate", None)  # shares of the preset's own design
        for name in _DECIDED & {field.name for field in dataclasses.fields(self)}:
            if getattr(self, name) is None:
                setattr(self, name, decided.get(name, _own_default(type(self), name)))

    def _count_batches(self) -> None:
        """Work out the completions of a rollout batch and the updates of the run, as TRL does."""
        size, given = self.per_device_train_batch_size, self.steps_per_generation
        whole = size * (given or self.gradient_accumulation_steps)
        if self.generation_batch_size is None:
            self.generation_batch_size = whole
        elif given is not None and self.generation_batch_size != whole:
            raise ConfigError("generation_batch_size and steps_per_generation: got both, needs one of them")
        if self.generation_batch_size % size:
            raise ConfigError(
                f"generation_batch_size: got {self.generation_batch_size}, needs a multiple of "
                f"per_device_train_batch_size ({size})"
            )
        self.steps_per_generation = self.generation_batch_size // size
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation: got {self.steps_per_generation} micro-batches, needs a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) so that no update spans two rollouts"
            )
        if self.stp_rollouts is not None:
            updates = self.stp_rollouts * self.updates_per_rollout
            if self.max_steps not in (-1, updates):
                raise ConfigError(f"max_steps: got {self.max_steps} beside stp_rollouts {self.stp_rollouts}, needs one")
            self.max_steps = updates

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser updates of a rollout batch."""
        assert self.steps_per_generation is not None  # noqa: S101 - set by __post_init__
        return self.num_iterations * (self.steps_per_generation // self.gradient_accumulation_steps)

    @property
    def groups(self) -> int:
        """Prompts of a rollout batch."""
        return int(self.generation_batch_size or 0) // self.num_generations

    @cached_property
    def _setup_devices(self) -> torch.device:
        """The device of the run; transformers asks for it here, and would ask accelerate."""
        self.distributed_state = None
        cuda = torch.cuda.is_available() and not (self.use_cpu or said("ACCELERATE_USE_CPU"))
        try:
            device = torch.device(self.stp_device or ("cuda" if cuda else "cpu"))
        except RuntimeError as error:
            raise ConfigError(
                f"stp_device: got {self.stp_device!r}, needs a device of torch: cpu, cuda, cuda:1"
            ) from error
        several = distributed.start(device.type, seconds=self.ddp_timeout, backend=self.ddp_backend) > 1
        if several and device.type == "cuda":
            device = torch.device("cuda", distributed.local_rank())
        self._n_gpu = int(device.type == "cuda")
        return device

    def check_device(self) -> None:
        """Check that this machine has the device of the run: a configuration is read on others too.

        Raises:
            ConfigError: it has none.
        """
        try:
            torch.zeros(1, device=self.device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0][:120]
            raise ConfigError(
                f"stp_device: got {self.stp_device or self.device.type!r}, which this machine does not have "
                f"({reason}); leave the option out, or give cpu"
            ) from error

    @property
    def world_size(self) -> int:
        """The number of processes of the run."""
        return distributed.world()

    @property
    def process_index(self) -> int:
        """The number of this process."""
        return distributed.rank()

    @property
    def local_process_index(self) -> int:
        """The number of this process on its machine."""
        return distributed.local_rank()

    @classmethod
    def from_yaml(cls: "type[Config]", path: str | Path, **overrides: Any) -> "Config":
        """Return the configuration of a YAML file of flat names; `overrides` win.

        An overriding `preset` wins over what it decides and over what the file's own preset decided; an overriding
        `preset` or `pruning` over every option of pruning.
        """
        loaded = read_yaml(path)
        decided = {name for chosen in PRUNINGS.values() for name in chosen} if "pruning" in overrides else set()
        if "preset" in overrides:
            presets = [PRESETS.get(str(name), {}) for name in (loaded.get("preset", "stp"), overrides["preset"])]
            decided = {"pruning", *(name for chosen in (*presets, *PRUNINGS.values()) for name in chosen)}
        if {"max_steps", "num_train_epochs"} & overrides.keys():
            decided.add("stp_rollouts")
        kept = {name: value for name, value in loaded.items() if name not in decided}
        return cls(**{**kept, **overrides})

    def to_flat(self) -> dict[str, Any]:
        """Return every option by its flat name, as YAML writes it; `STPConfig(**flat)` is the same again."""
        values = {name: getattr(self, name) for name in options(type(self)) if name != "hub_token"}
        if self.stp_rollouts is not None:
            del values["max_steps"]
        if self.steps_per_generation == self.gradient_accumulation_steps:
            del values["steps_per_generation"], values["generation_batch_size"]
        return {name: _plain(value) for name, value in values.items()}

    def identity(self, *kinds: str) -> dict[str, Any]:
        """Return the options that decide the given things (`numbers`, `speed`, `output`), by name."""
        known = options(type(self))
        values = {name: _plain(getattr(self, name)) for name in known if known[name].identity in kinds}
        values.pop("stp_rollouts", None)  # max_steps says it
        if self.stp_on_alarm != "rollback":  # then alarms change no number
            values = {name: value for name, value in values.items() if "_alarm" not in name}
        if "numbers" in kinds and self.stp_temporal.startswith("fill_ratio_batch"):
            values["stp_slots"] = self.stp_slots  # that rule reads the rows in flight
        return values

    def __repr__(self) -> str:
        """Return the call that makes this configuration, without what is a default."""
        default = type(self)(preset=self.preset, pruning=self.pruning).to_flat()
        given = {name: value for name, value in self.to_flat().items() if value != default.get(name)}
        shown = {"preset": self.preset, "pruning": self.pruning, **given}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    __str__ = __repr__


Config = TypeVar("Config", bound=STPConfig)


@_explained
@dataclass(repr=False)
@_undecided
class TaskConfig(PolicyConfig, TaskSection, STPConfig):  # type: ignore[misc] # as in STPConfig
    """What `stp-rs train` reads: a configuration with a task, and with defaults for the tiny policy that it embeds."""

    _COMMON: ClassVar[Mapping[str, Any]] = TASK

    def __post_init__(self) -> None:
        """Log and save by rollout batches where nothing else is said; 0 stands for the task's completion length."""
        given: Any = self
        own_logging, own_saving = given.logging_steps, given.save_steps
        if given.output_dir is None:
            self.output_dir = f"runs/{self.task}-{self.preset}-seed{TASK['seed'] if given.seed is None else self.seed}"
        super().__post_init__()
        if own_logging is None:
            self.logging_steps = self.updates_per_rollout
        if own_saving is None:
            self.save_steps = 50 * self.updates_per_rollout
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size: got {self.hidden_size}, needs a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )


def take_launcher(config: STPConfig) -> None:
    """Take over what `accelerate launch` says in the environment and the configuration does not."""
    if config.fsdp is None:
        config.fsdp = said("ACCELERATE_USE_FSDP")
        if config.fsdp and config.fsdp_config is None:
            wraps = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
            config.fsdp_config = {
                "version": int(os.environ.get("FSDP_VERSION", "2")),
                "reshard_after_forward": os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true",
                "cpu_offload": said("FSDP_OFFLOAD_PARAMS"),
                **({"transformer_layer_cls_to_wrap": wraps.split(",")} if wraps else {}),
            }


def said(name: str) -> bool:
    """Return whether a variable of the environment says yes."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def options(cls: Any) -> dict[str, Option]:
    """Return the options of a configuration class by name, in the order of their sections."""
    if cls not in _OPTIONS:
        _OPTIONS[cls] = _options_of(cls)
    return _OPTIONS[cls]


_OPTIONS: dict[Any, dict[str, Option]] = {}


def _options_of(cls: Any) -> dict[str, Option]:
    hints = typing.get_type_hints(cls)
    own = [base for base in reversed(cls.__mro__) if base.__module__ == AlgorithmConfig.__module__]
    sections = {name: base for base in own for name in inspect.get_annotations(base)}
    found = {}
    for field in dataclasses.fields(cls):
        kind, optional = plain_type(hints[field.name])
        text = field.metadata.get("help", "")
        if isinstance(text, Help):
            section = (sections[field.name].__doc__ or "").split("\n", maxsplit=1)[0].rstrip(".")
            kind = dict if typing.get_origin(kind) is dict else kind
            found[field.name] = Option(
                field.name, kind, optional, str(text), section, text.identity, text.low, text.high
            )
        elif field.name in INHERITED:
            section, identity, low, high = INHERITED[field.name]
            optional = optional or field.default is None
            found[field.name] = Option(
                field.name, kind, optional, EXPLAINED[field.name][1], section, identity, low, high
            )
    return found


def _own_default(cls: Any, name: str) -> Any:
    """Return the default that an option has in its section, or in transformers."""
    for base in cls.__mro__[1:]:
        known = vars(base).get(_FIELDS, {}).get(name)
        if known is not None and not issubclass(base, STPConfig):
            return copy.copy(known.default)
    raise ConfigError(f"{name}: has no default")


def _refuse(config: STPConfig) -> None:
    """Raise a ConfigError for an option of transformers that cannot hold here and is not as transformers has it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in INHERITED or isinstance(field.metadata.get("help"), Help) or not field.init:
            continue
        same = value == field.default or (not value and not field.default)
        if not same and field.name != "accelerator_config" and field.default is not dataclasses.MISSING:
            raise unknown_option(field.name, set())


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value
