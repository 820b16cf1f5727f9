"""Variants and plans of a comparison: what text means, and what is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from stp_rs.config import PRESETS
from stp_rs.errors import ConfigError
from studies.compare.plan import Comparison, read_plan, read_study, run_identity
from studies.compare.variants import Variant, parse_variants

PLANS = Path(__file__).parents[2] / "examples" / "compare"


def test_a_preset_a_pruning_and_options_make_a_variant():
    text = "stp, elbo/stp, none=stp/none, k4=stp;num_mc=4;stp_temporal=margin:0.9:0.1, elbo;stp_score_prior=true"
    assert parse_variants(text) == [
        Variant("stp", {"preset": "stp"}),
        Variant("elbo/stp", {"preset": "elbo", "pruning": "stp"}),
        Variant("none", {"preset": "stp", "pruning": "none"}),
        Variant("k4", {"preset": "stp", "num_mc": 4, "stp_temporal": "margin:0.9:0.1"}),
        Variant("elbo;stp_score_prior=true", {"preset": "elbo", "stp_score_prior": True}),
    ]


def test_all_is_every_preset_there_is():
    assert [variant.name for variant in parse_variants("all")] == list(PRESETS)
    assert [variant.name for variant in parse_variants("k4=stp;num_mc=4,all")] == ["k4", *PRESETS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "variants: got none"),
        ("best", "variant 'best': preset 'best' is unknown, needs one of"),
        ("stp/most", "variant 'stp/most': pruning 'most' is unknown, needs one of"),
        ("stp/", "pruning '' is unknown"),
        ("=stp", "needs a name before '='"),
        ("stp;num_mc", "got 'num_mc', needs option=value; options are separated by ';'"),
        ("stp;num_mc=", "needs option=value"),
        ("stp;num_mc=1;num_mc=2", "num_mc is given twice"),
        ("stp;preset=elbo", "preset is given twice"),
        ("stp;num_cm=4", "unknown option 'num_cm'"),
        ("stp;seed=4", "seed belongs to the whole comparison; give it as --seed"),
        ("stp;stp_score_prior=maybe", "stp_score_prior: got 'maybe' (str), needs true or false"),
        ("stp,stp", "variant 'stp': 'stp' has the same folder"),
        ("a b=stp,a_b=elbo", "variant 'a_b': 'a b' has the same folder"),
    ],
)
def test_a_variant_that_says_nothing_sensible_is_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as caught:
        parse_variants(text)
    assert message in str(caught.value)


def make(text: str = "stp,k4=stp;num_mc=4", **fields: Any) -> Comparison:
    return Comparison(parse_variants(text), **{"seeds": (0, 1), **fields})


def test_every_variant_meets_every_seed_and_seeds_come_whole():
    jobs = make(options={"stp_rollouts": 40, "num_mc": 1}, output_dir="out").jobs()
    assert [job.name for job in jobs] == [f"sudoku, {name} seed {seed}" for seed in (0, 1) for name in ("stp", "k4")]
    assert [job.config.num_mc for job in jobs] == [1, 4, 1, 4], "a variant's own option wins"
    assert [job.config.seed for job in jobs] == [0, 0, 1, 1]
    assert jobs[1].folder == Path("out/runs/k4/seed-0")
    run = jobs[0].config
    assert (run.eval_steps, run.save_steps, run.logging_steps, run.resume_from_checkpoint) == (8, 8, 2, "auto")
    other = make(options={"stp_rollouts": 40, "num_iterations": 3}, evaluations=4).jobs()[0].config
    assert (other.eval_steps, other.save_steps, other.logging_steps, other.max_steps) == (30, 30, 3, 120)


def test_a_config_file_holds_for_all_variants_below_flags_and_presets(tmp_path: Path):
    file = tmp_path / "base.yaml"
    file.write_text("preset: stp\nlearning_rate: 0.1\nstp_rollouts: 30\nstp_design: systematic\n")
    jobs = make("stp,elbo", seeds=(0,), config=str(file), options={"stp_rollouts": 7}).jobs()
    assert [job.config.learning_rate for job in jobs] == [0.1, 0.1]
    assert [job.config.stp_rollouts for job in jobs] == [7, 7]
    assert [job.config.stp_design for job in jobs] == [PRESETS[name]["stp_design"] for name in ("stp", "elbo")]


def test_an_impossible_run_is_refused_before_any_run():
    with pytest.raises(ConfigError, match=r"num_mc: got 'four' \(str\), needs an integer"):
        make("stp,k4=stp;num_mc=four").jobs()
    for seeds in ((), (0, 0), (-1,)):
        with pytest.raises(ConfigError, match=r"seeds: got .*, needs distinct numbers from 0"):
            make(seeds=seeds)
    with pytest.raises(ConfigError, match="baseline: got 'elbo', needs one of the variants: stp, k4"):
        make(baseline="elbo")


def test_what_decides_a_curve_is_its_identity():
    def of(**options: Any) -> dict[str, Any]:
        return run_identity(make("stp", seeds=(0,), options=options).jobs()[0].config)

    assert of() == of(stp_slots=3, stp_device="cpu")
    for name, value in (
        ("eval_size", 9),
        ("num_mc", 9),
        ("hidden_size", 32),
        ("stp_rollouts", 9),
        ("stp_num_threads", 3),
    ):
        assert of() != of(**{name: value}), name


PLAN = """
task: countdown
seeds: [3, 4]
baseline: elbo
options: {stp_rollouts: 30, stp_score_prior: "false"}
json: out.json
variants:
  k4: {preset: stp, num_mc: 4, stp_temporal: confidence:0.9}
  elbo:
"""


def test_a_plan_says_all_of_it_and_flags_win(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    plan = read_plan(path, {})
    assert [v.name for v in plan.variants] == ["k4", "elbo"]
    assert plan.variants[1].options == {"preset": "elbo"}
    assert (plan.seeds, plan.baseline, plan.outputs) == ((3, 4), "elbo", {"json": "out.json"})
    assert plan.output_dir == "runs/plan"
    config = plan.jobs()[0].config
    assert (config.task, config.stp_rollouts, config.stp_score_prior) == ("countdown", 30, False)
    flags = {"options": {"stp_rollouts": 5, "task": "sudoku"}, "seeds": (0,), "variants": "elbo"}
    job = read_plan(path, flags).jobs()[0]
    assert (job.name, job.config.stp_rollouts, job.config.task) == ("sudoku, elbo seed 0", 5, "sudoku")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "got list, needs lines of `name: value`"),
        ("a: [1,", "cannot be read"),
        ("seeds: [0]\nvariants: stp\nsteps: 3", "unknown key 'steps'"),
        ("seeds: 3\nvariants: stp", "seeds: got 3, needs a list of numbers"),
        ("seeds: [true]\nvariants: stp", "seeds: got [True], needs a list"),
        ("seeds: [0]\nvariants: [stp]", "variants needs a mapping from names to options"),
        ("seeds: [0]\nvariants: {stp: 3}", "variants needs a mapping"),
        ("seeds: [0]\nvariants: {fast: {preset: quick}}", "preset 'quick' is unknown"),
        ("seeds: [0]\nvariants: stp\noptions: 3", "options: got 3, needs lines"),
    ],
)
def test_a_plan_that_says_nothing_sensible_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as caught:
        read_plan(path, {})
    assert message in str(caught.value)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_plans_can_run(path: Path):
    study = read_study(path, {})
    assert study.jobs()
    if tuning := study.tuning():
        assert tuning.jobs()


STUDY = """
seeds: [7, 8]
output_dir: runs/study
baseline: stp
hypotheses:
  - {name: k4 helps, task: sums, variant: k4, than: stp}
options: {max_steps: 30, learning_rate: 1.0e-3}
variants: {stp: {preset: stp}, k4: {preset: stp, num_mc: 4}}
tune: {option: learning_rate, seeds: [1]}
seconds: {stp: 10, warm-up: 5}
tasks:
  sums: {seeds: [7], variants: {k4: {max_steps: 9}}, tune: {values: [0.1, 0.2], variants: [k4]}, seconds: {k4: 20}}
  sudoku: {options: {sft_steps: 3}, tune: {values: [0.3]}}
"""


def test_a_study_runs_whole_seeds_of_all_tasks_and_tunes_on_seeds_of_its_own(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    study = read_study(path, {})
    assert [job.name for job in study.jobs()] == [
        *("sums, stp seed 7", "sums, k4 seed 7", "sudoku, stp seed 7", "sudoku, k4 seed 7"),
        *("sudoku, stp seed 8", "sudoku, k4 seed 8"),
    ]
    first, second, third, *_ = study.jobs()
    assert (second.config.max_steps, second.config.num_mc, third.config.sft_steps) == (9, 4, 3)
    assert (first.seconds, second.seconds, third.seconds, first.warm_up_seconds) == (10, 20, 10, 5)
    assert str(first.folder) == "runs/study/sums/runs/stp/seed-7"
    assert {str(job.folder) for job in study.warm_ups()} >= {"runs/study/sudoku/runs/warm-up/seed-8"}
    assert [hypothesis.name for hypothesis in study.hypotheses] == ["k4 helps"]
    assert read_study(path, {"variants": "stp"}).hypotheses == [], "of variants that were not asked for"
    tuning = study.tuning()
    assert tuning is not None
    assert [(job.name, job.config.learning_rate, job.seconds) for job in tuning.jobs()] == [
        ("sums, k4@0.1 seed 1", 0.1, 20.0),
        ("sums, k4@0.2 seed 1", 0.2, 20.0),
        ("sudoku, stp@0.3 seed 1", 0.3, 10.0),
        ("sudoku, k4@0.3 seed 1", 0.3, 0.0),
    ]

    def record(name: str, rate: float, score: float) -> dict[str, Any]:
        curve = [{"solved_free": 0.9}, {"solved_free": score}]
        return {"task": "sums", "variant": name, "identity": {"learning_rate": rate}, "curve": curve}

    tuned, picked = study.tuned([record("k4@0.2", 0.2, 0.5), record("k4@0.1", 0.1, 0.5)])
    assert picked == {"sums": {"k4": 0.1}}, "of equals the smaller"
    assert [job.config.learning_rate for job in tuned.jobs()][:4] == [1e-3, 0.1, 1e-3, 1e-3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("variant: k4, than", "variant: k5, than", "needs a task and two variants"),
        ("than: stp", "then: stp", "needs name, task, variant and than"),
        ("seeds: [1]}", "seeds: [8]}", "reported too"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(old: str, new: str, message: str, tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_study(path, {}).tuning()
