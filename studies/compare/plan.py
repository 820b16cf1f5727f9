"""What a comparison runs: variants x seeds, from flags or from a YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stp_rs.cli.flags import option_value
from stp_rs.config.sections import STPConfig
from stp_rs.errors import ConfigError
from studies.compare.variants import Variant, distinct, make_variant, parse_variants

EVALUATIONS = 10
"""Points of a curve where `eval_steps` is not given."""
_FREE = {"output_dir", "resume", "device", "num_threads", "logging_steps", "save_steps", "num_completions_to_print"}


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    variant: Variant
    config: STPConfig

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return Path(self.config.output_dir)

    @property
    def name(self) -> str:
        """The run, for a reader."""
        return f"{self.variant.name} seed {self.config.seed}"


@dataclass(frozen=True)
class Comparison:
    """Variants of one task's training, each with every seed.

    Example:
        Comparison(parse_variants("stp,elbo/stp"), (0, 1, 2), {"task": "sudoku", "max_steps": 120})
    """

    variants: list[Variant]
    seeds: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Flat options of every variant."""
    config: str = ""
    """YAML file of options below them."""
    output_dir: str = ""
    """Holds runs/VARIANT/seed-N and warmup/; empty means runs/compare-TASK."""
    baseline: str = ""
    """The variant that differences are taken from; empty means the first."""
    reference: str = ""
    """The variant whose final score the others are timed to; empty means the baseline."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Files by kind: json, markdown, plot."""

    def __post_init__(self) -> None:
        """Check what does not need a run to be known.

        Raises:
            ConfigError: no seeds or a seed twice, or an unknown baseline or reference.
        """
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds: got {list(self.seeds)}, needs distinct numbers from 0, e.g. 0,1,2")
        names = [variant.name for variant in self.variants]
        for what, name in (("baseline", self.baseline), ("reference", self.reference)):
            if name and name not in names:
                raise ConfigError(f"{what}: got {name!r}, needs one of the variants: {', '.join(names)}")

    def jobs(self) -> list[Job]:
        """Return every run, seed by seed, so that an interrupted comparison has whole seeds.

        Raises:
            ConfigError: a configuration that cannot be; nothing has run then.
        """
        return [Job(variant, self._configure(variant, seed)) for seed in self.seeds for variant in self.variants]

    def _configure(self, variant: Variant, seed: int) -> STPConfig:
        options = {**self.options, **variant.options, "seed": seed}
        config = STPConfig.from_yaml(self.config, **options) if self.config else STPConfig.make(**options)
        root = Path(self.output_dir or f"runs/compare-{config.task}")
        every = config.eval_steps or max(1, config.max_steps // EVALUATIONS)
        return replace(
            config,
            output_dir=str(root / "runs" / variant.folder / f"seed-{seed}"),
            logging_steps=1,
            eval_steps=every,
            save_steps=every,
            resume=True,
        )


def run_identity(config: STPConfig) -> dict[str, Any]:
    """Return the options that decide a run's curve."""
    return {k: v for k, v in config.to_flat().items() if k not in _FREE}


_KEYS = {
    *("task", "seeds", "variants", "options", "config", "output_dir", "baseline", "reference"),
    *("json", "markdown", "plot"),
}


def read_plan(path: str | Path, overrides: Mapping[str, Any]) -> Comparison:
    """Return the comparison of a YAML file; see `examples/compare/`.

    `variants` is a mapping from names to options (`preset`, `pruning` and any other), or text as for --presets.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key or none that is needed.
    """
    import yaml

    try:
        plan = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"plan {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plan, dict) or not {"variants", "seeds"} <= plan.keys():
        raise ConfigError(f"plan {path}: needs at least the keys variants and seeds")
    unknown = sorted(map(str, plan.keys() - _KEYS))
    if unknown:
        raise ConfigError(f"plan {path}: unknown key {unknown[0]!r}, needs some of {', '.join(sorted(_KEYS))}")
    plan = {**plan, **{k: v for k, v in overrides.items() if k in _KEYS and k != "options"}}
    own = {"task": plan["task"]} if "task" in plan else {}
    options = {**_mapping(path, "options", plan), **own, **overrides.get("options", {})}
    return Comparison(
        variants=_variants(path, plan["variants"]),
        seeds=_seeds(path, plan["seeds"]),
        options={k: option_value(k, v) for k, v in options.items()},
        config=str(plan.get("config", "")),
        output_dir=str(plan.get("output_dir", f"runs/{Path(path).stem}")),
        baseline=str(plan.get("baseline", "")),
        reference=str(plan.get("reference", "")),
        outputs={kind: str(plan[kind]) for kind in ("json", "markdown", "plot") if plan.get(kind)},
    )


def _variants(path: str | Path, variants: Any) -> list[Variant]:
    if isinstance(variants, str):
        return parse_variants(variants)
    if not isinstance(variants, dict) or not all(isinstance(v, dict | None) for v in variants.values()):
        raise ConfigError(f"plan {path}: variants needs a mapping from names to options, or text as for --presets")
    return distinct(make_variant(str(name), own or {"preset": name}) for name, own in variants.items())


def _seeds(path: str | Path, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list | tuple) or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"plan {path}: seeds: got {seeds!r}, needs a list of numbers, e.g. [0, 1, 2]")
    return tuple(seeds)


def _mapping(path: str | Path, key: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    value = plan.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"plan {path}: {key}: got {value!r}, needs lines of `name: value`")
    return value
