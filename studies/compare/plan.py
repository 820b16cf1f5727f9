"""What a comparison runs: variants x seeds of one task or of several, from flags or from a YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stp_rs.cli.flags import option_value
from stp_rs.config import TaskConfig
from stp_rs.config.yaml import read_yaml
from stp_rs.errors import ConfigError
from studies.compare.variants import Variant, distinct, make_variant, parse_variants

WARM_UP = "warm-up"
EVALUATIONS = 10
"""Points of a curve where a comparison does not say how many."""


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    variant: Variant
    config: TaskConfig
    seconds: float = 0.0
    """What it is expected to take of one core, by the plan; 0 where nobody said."""
    warm_up_seconds: float = 0.0

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return Path(str(self.config.output_dir))

    @property
    def name(self) -> str:
        """The run, for a reader."""
        return f"{self.config.task}, {self.variant.name} seed {self.config.seed}"


@dataclass(frozen=True)
class Comparison:
    """Variants of one task's training, each with every seed.

    Example:
        Comparison(parse_variants("stp,elbo/stp"), (0, 1, 2), {"task": "sudoku", "stp_rollouts": 120})
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
    evaluations: int = EVALUATIONS
    """Points of each curve, at equal distances in rollout batches."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Files by kind: json, markdown, plot."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Expected seconds of one core per run, by variant, and of a warm-up as `warm-up`; for a budget of seconds."""
    tune: Mapping[str, Any] = field(default_factory=dict)
    """One option that is picked on seeds of its own: `option`, `values`, `seeds`, and `variants`, by default all."""

    def __post_init__(self) -> None:
        """Check what does not need a run to be known.

        Raises:
            ConfigError: no seeds or a seed twice, or an unknown baseline or reference.
        """
        if self.evaluations < 1:
            raise ConfigError(f"evaluations: got {self.evaluations}, needs at least 1")
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
        return [job for seed in self.seeds for job in self.jobs_of(seed)]

    def jobs_of(self, seed: int) -> list[Job]:
        """Return the runs of a seed; none where it is not among the comparison's."""
        warm_up = self.seconds.get(WARM_UP, 0.0)
        return [
            Job(variant, self._configure(variant, seed), self.seconds.get(variant.name, 0.0), warm_up)
            for variant in self.variants
            if seed in self.seeds
        ]

    def tuning(self) -> "Comparison | None":
        """Return the runs that pick the tuned option: every value on the tuning seeds; None where nothing is tuned.

        Raises:
            ConfigError: a tuning seed that is reported too.
        """
        if not self.tune:
            return None
        seeds, option, names = tuple(self.tune["seeds"]), self.tune["option"], [v.name for v in self.variants]
        if set(seeds) & set(self.seeds):
            raise ConfigError(f"tune: seeds {list(seeds)} are reported too, needs seeds of its own")
        variants = [
            Variant(f"{variant.name}@{value}", {**variant.options, option: value})
            for variant in self.variants
            if variant.name in self.tune.get("variants", names)
            for value in self.tune["values"]
        ]
        seconds = {v.name: self.seconds.get(v.name.rpartition("@")[0], 0.0) for v in variants}
        warm_up = {WARM_UP: self.seconds[WARM_UP]} if WARM_UP in self.seconds else {}
        return replace(
            self,
            variants=variants,
            seeds=seeds,
            evaluations=1,  # its end decides
            seconds={**seconds, **warm_up},
            tune={},
            baseline="",
            reference="",
        )

    def tuned(self, records: Sequence[Mapping[str, Any]]) -> tuple["Comparison", dict[str, Any]]:
        """Return the comparison with the values that validation ends highest with, of equals the smallest; and them.

        A variant none of whose runs finished keeps its own value.
        """
        option, picked = self.tune["option"], dict[str, Any]()
        for variant in self.variants:
            scores: dict[Any, list[float]] = {}
            for record in records:
                name = record["variant"].rpartition("@")[0]
                if (record["task"], name) == (self.jobs()[0].config.task, variant.name):
                    scores.setdefault(record["identity"][option], []).append(record["curve"][-1]["solved_free"])
            if scores:
                picked[variant.name] = min(scores, key=lambda value: (-sum(scores[value]) / len(scores[value]), value))
        variants = [
            Variant(v.name, {**v.options, **({option: picked[v.name]} if v.name in picked else {})})
            for v in self.variants
        ]
        return replace(self, variants=variants, tune={}), picked

    def _configure(self, variant: Variant, seed: int) -> TaskConfig:
        options = {**self.options, **variant.options, "seed": seed}
        config = TaskConfig.from_yaml(self.config, **options) if self.config else TaskConfig(**options)
        root = Path(self.output_dir or f"runs/compare-{config.task}")
        each = config.updates_per_rollout
        every = each * max(1, config.max_steps // each // self.evaluations)
        return replace(
            config,
            output_dir=str(root / "runs" / variant.folder / f"seed-{seed}"),
            logging_steps=each,
            eval_strategy="steps",
            eval_steps=every,
            save_steps=every,
            resume_from_checkpoint="auto",
        )


def run_identity(config: TaskConfig) -> dict[str, Any]:
    """Return the options that decide a run's curve."""
    return {**config.identity("numbers"), "eval_size": config.eval_size, "eval_steps": config.eval_steps}


_KEYS = {
    *("task", "seeds", "variants", "options", "config", "output_dir", "baseline", "reference", "seconds", "tune"),
    *("evaluations", "json", "markdown", "plot"),
}


@dataclass(frozen=True)
class Hypothesis:
    """A difference between two variants that was named before anything ran: final test scores, paired by seed."""

    name: str
    task: str
    variant: str
    than: str


@dataclass(frozen=True)
class Study:
    """Comparisons of one or more tasks, and the hypotheses that are tested on them."""

    parts: list[Comparison]
    hypotheses: list[Hypothesis] = field(default_factory=list)

    def tuning(self) -> "Study | None":
        """Return the runs that pick tuned options; None where nothing is tuned."""
        parts = [found for part in self.parts if (found := part.tuning())]
        return Study(parts) if parts else None

    def warm_ups(self) -> list[Job]:
        """Return a job per task and seed that only stands for its warm-up."""
        return [
            replace(
                part.jobs_of(seed)[0],
                variant=Variant(WARM_UP, {}),
                config=part._configure(Variant(WARM_UP, part.variants[0].options), seed),
            )
            for part in self.parts
            for seed in part.seeds
        ]

    def tuned(self, records: Sequence[Mapping[str, Any]]) -> tuple["Study", dict[str, Any]]:
        """Return the study with the options that the tuning runs picked, and what was picked by task."""
        both = [part.tuned(records) if part.tune else (part, {}) for part in self.parts]
        picked = {part.jobs()[0].config.task: chosen for part, chosen in both if chosen}
        return replace(self, parts=[part for part, _ in both]), picked

    def jobs(self) -> list[Job]:
        """Return every run: all tasks and variants of the first seed, then of the second."""
        seeds = dict.fromkeys(seed for part in self.parts for seed in part.seeds)
        return [job for seed in seeds for part in self.parts for job in part.jobs_of(seed)]


def read_study(path: str | Path, overrides: Mapping[str, Any]) -> Study:
    """Return the study of a YAML file: a plan, or one with `tasks`, a mapping from tasks to what they change of it.

    What a task says of `options`, `seconds` and `variants` is added to the plan's, its other keys take their place.

    Raises:
        ConfigError: as `read_plan`; or a hypothesis that names no task or variant of the study.
    """
    plan = _load(path)
    tasks, stated = _mapping(path, "tasks", plan), plan.get("hypotheses") or []
    shared = {k: v for k, v in plan.items() if k not in ("tasks", "hypotheses")}
    root = overrides.get("output_dir") or plan.get("output_dir", f"runs/{Path(path).stem}")
    parts = [] if tasks else [_comparison(path, shared, overrides)]
    for task in tasks:
        changes = _mapping(path, task, tasks)
        own = {**shared, **changes, "task": task}
        for key in ("options", "seconds", "tune"):
            own[key] = {**_mapping(path, key, shared), **_mapping(path, key, changes)}
        own["variants"] = dict(_mapping(path, "variants", shared))
        for name, options in _mapping(path, "variants", changes).items():
            own["variants"][name] = {**(own["variants"].get(name) or {"preset": name}), **(options or {})}
        parts.append(_comparison(path, own, {**overrides, "output_dir": f"{root}/{task}"}))
    names = {(job.config.task, job.variant.name) for part in parts for job in part.jobs()}
    hypotheses = []
    for entry in stated:
        try:
            hypothesis = Hypothesis(**entry)
        except TypeError:
            raise ConfigError(f"plan {path}: hypothesis {entry!r}: needs name, task, variant and than") from None
        if not {(hypothesis.task, hypothesis.variant), (hypothesis.task, hypothesis.than)} <= names:
            if overrides.get("variants"):  # others were asked for
                continue
            raise ConfigError(f"plan {path}: hypothesis {hypothesis.name!r}: needs a task and two variants of the plan")
        hypotheses.append(hypothesis)
    return Study(parts, hypotheses)


def read_plan(path: str | Path, overrides: Mapping[str, Any]) -> Comparison:
    """Return the comparison of a YAML file; see `examples/compare/`.

    `variants` is a mapping from names to options (`preset`, `pruning` and any other), or text as for --presets.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key or none that is needed.
    """
    return _comparison(path, _load(path), overrides)


def _load(path: str | Path) -> dict[str, Any]:
    plan = read_yaml(path, "plan")
    if not {"variants", "seeds"} <= plan.keys():
        raise ConfigError(f"plan {path}: needs at least the keys variants and seeds")
    return plan


def _comparison(path: str | Path, plan: dict[str, Any], overrides: Mapping[str, Any]) -> Comparison:
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
        evaluations=plan.get("evaluations", EVALUATIONS),
        outputs={kind: str(plan[kind]) for kind in ("json", "markdown", "plot") if plan.get(kind)},
        seconds={str(name): float(value) for name, value in _mapping(path, "seconds", plan).items()},
        tune=_mapping(path, "tune", plan),
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
