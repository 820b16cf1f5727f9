"""`stp-rs estimate`: counts are those of the run, and prices those of the cards that were measured."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stp_rs
from stp_rs import STPConfig, STPTrainer
from stp_rs.cli.estimate import duration, size_of
from stp_rs.cli.main import main
from stp_rs.cli.run import TaskTrainer, complete, make_task, prepare_policy
from stp_rs.config import TaskConfig
from stp_rs.errors import ConfigError
from stp_rs.eval import prices
from stp_rs.eval.forecast import Forecast, Seen, _distinct, forecast
from stp_rs.rollout.rewards import Rewards
from tests.fixtures import ROWS, SMALL, tiny, tokenizer, trainer
from tests.standins import write

BENCH = Path(__file__).parents[2] / "benches" / "gpu"
EXACT: list[dict[str, Any]] = [
    {},
    {"preset": "diffu_grpo"},
    {"preset": "espo"},
    {"preset": "spg"},
    {"preset": "grpo"},
    {"preset": "bgpo"},
    {"stp_temporal": "steps:0.6", "stp_slots": 3},
    {"stp_temporal": "fill_ratio:0.5", "diffusion_steps": 4, "block_length": 3},
    {"stp_quota": "bernoulli", "stp_confidence": "random", "diffusion_steps": 3},
    {"num_iterations": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    {"stp_constant_memory": True, "stp_forward_batch_size": 2, "beta": 0.1},
    {"stp_spatial": "offline_generation", "stp_keep": 0.5, "stp_protect_answer": False, "stp_rollouts": 1},
    {"stp_replay_batches": 2, "stp_max_tokens": 30},
]


def expected(made: Any) -> tuple[dict[str, float], Forecast]:
    """Return the counts that a step of a trainer made, and its forecast."""
    found = forecast(made.args, ROWS, tokenizer(), policy=made.policy)
    made.train_step()
    return made.ledger.counts(), found


@pytest.mark.parametrize("options", EXACT, ids=lambda o: next(iter(o.values()), "defaults"))
def test_counts_are_those_of_the_run(options: dict[str, Any], tmp_path: Path):
    counts, found = expected(trainer(tmp_path, reward=_distinct, priors=None, **options))
    assert found.counts().items() <= counts.items()
    assert counts["diffusion/forwards_rollout"] > 0
    assert counts["diffusion/forwards_backward"] > 0


def test_a_model_without_padding_is_called_as_it_will_be(tmp_path: Path):
    model = tiny()
    model.respects_padding, model.masks_pads = False, True
    counts, found = expected(trainer(tmp_path, model, reward=_distinct, num_iterations=2))
    assert found.counts().items() <= counts.items()


def test_a_block_causal_model_is_counted_through_its_cache(tmp_path: Path):
    policy, tokens = stp_rs.load(write("sdar", tmp_path / "model"), trust_remote_code=True)
    args = STPConfig(**{**SMALL, "output_dir": str(tmp_path / "run")})
    found = forecast(args, ROWS, tokens, policy=policy)
    made = STPTrainer(policy, _distinct, args, ROWS, processing_class=tokens)
    made.prepare()
    made.train_step()
    counts, expected_tokens = made.ledger.counts(), found.counts().pop("diffusion/tokens_rollout")
    same = {name: value for name, value in found.counts().items() if name != "diffusion/tokens_rollout"}
    assert same.items() <= counts.items()
    # completions of a prompt that begin alike by chance share a cache
    assert counts["diffusion/tokens_rollout"] == pytest.approx(expected_tokens, rel=0.1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stp_temporal": "confidence:0.05"}, "stp_temporal"),
        ({"stp_temporal": "stable:2"}, "stp_temporal"),
        ({"stp_temporal": "entropy:9"}, "stp_temporal"),
        ({"stp_selection": "threshold:0.11"}, "stp_selection"),
        ({"stp_eos": "truncate"}, "stp_eos"),
    ],
)
def test_what_the_policy_decides_is_bounded_and_said(options: dict[str, Any], word: str, tmp_path: Path):
    counts, found = expected(trainer(tmp_path, reward=_distinct, **options))
    assert found.cost["rollout"].forwards >= counts["diffusion/forwards_rollout"]
    assert any(note.startswith(word) for note in found.notes)


def test_a_tasks_priors_are_counted(tmp_path: Path):
    config = TaskConfig(
        output_dir=str(tmp_path / "run"), sft_steps=0, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        per_device_train_batch_size=8, num_generations=4, train_size=16, eval_size=4,
        stp_spatial="template+copy+vocabulary",
    )  # fmt: skip
    task = make_task(config)
    config = complete(config, task)
    policy, tokens = prepare_policy(config, task, tmp_path / "run")
    found = forecast(config, task.rows("train", 16, config.seed), tokens, task=task, policy=policy)
    made = TaskTrainer(config, task, policy, tokens, [])
    made.rewards = Rewards([_distinct])
    made.prepare()
    made.train_step()
    for kind in ("forwards", "tokens", "head_rows"):
        assert getattr(found.cost["rollout"], kind) == getattr(made.ledger, kind)["rollout"]
    assert found.cost["rollout"].forwards < 8 * 12, "the template and the copied digits are fixed"


def test_processes_share_groups(tmp_path: Path):
    args = trainer(tmp_path, num_generations=2, reward=_distinct).args
    whole, two, nine = (forecast(args, ROWS, tokenizer(), processes=n) for n in (1, 2, 9))
    for found in (two, nine):
        assert found.cost == whole.cost

    def canvases(found: Forecast, phase: str) -> int:
        return sum(call.canvases for call in found.calls if call.phase == phase)

    assert canvases(two, "rollout") < canvases(whole, "rollout") < 2 * canvases(two, "rollout") + 4
    assert two.largest == nine.largest == whole.largest, "micro-batches are dealt whole"
    assert (whole.idle, two.idle, nine.idle) == (0, 0, 5)


def test_a_forecast_leaves_no_trace_in_configuration_and_generators(tmp_path: Path):
    args = STPConfig(preset="elbo", max_completion_length=6, num_generations=4, output_dir=str(tmp_path / "never"))
    before, state = args.to_flat(), torch.get_rng_state()
    forecast(args, ROWS, tokenizer())
    assert args.to_flat() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "never").exists()


def setting(name: str, **options: Any) -> Forecast:
    """Return the forecast of the bench's batch of a shape, as its part `step` trains on it."""
    from stp_rs.cli.estimate import _Numbers

    batch, network = prices.SETTINGS[name], prices.NETWORKS[name]
    args = STPConfig(
        **{
            "preset": "stp_spread", "stp_spatial": "none", "stp_temporal": "none", "bf16": True, "use_cpu": True,
            "max_completion_length": batch.completion, "diffusion_steps": batch.steps,
            "block_length": batch.block or None, "num_generations": batch.group,
            "per_device_train_batch_size": batch.rows, "stp_slots": batch.rows, "temperature": 0.9,
            "stp_confidence": "sampled_prob", "stp_rollouts": 1, "output_dir": "nowhere", **options,
        }
    )  # fmt: skip
    rows = [{"prompt": str(i)} for i in range(batch.rows // batch.group)]
    return forecast(args, rows, _Numbers(batch.prompt, network.vocab))


def measured(file: str) -> dict[str, Any]:
    """Return the lines of a bench's file by name."""
    return {line["name"]: line for line in json.loads((BENCH / file).read_text())["results"]}


def test_an_8b_policys_step_comes_within_15_percent_of_the_card():
    lines, step = measured("results.json"), measured("results_step.json")
    network = prices.NETWORKS["llada-8b"]
    by_bench = prices.rates_of_bench(BENCH / "results.json", "llada-8b")
    width = prices.SETTINGS["llada-8b"].width
    by_card = prices.rates_of_card(network, tflops=prices.TFLOPS["h100"], width=width, recomputed=True)
    pruned, whole = setting("llada-8b", stp_temporal="steps:0.6"), setting("llada-8b")
    assert pruned.cost["rollout"].forwards == lines["rollout, adapters: ours, temporal"]["canvases"]
    assert whole.cost["rollout"].forwards == lines["rollout, base: unpruned"]["canvases"]
    second = step["training step: stp, second"]["value"]
    for rates in (by_bench, by_card):
        spent = prices.seconds(pruned, rates, host=False)
        assert spent["rollout"] == pytest.approx(lines["rollout, adapters: ours, temporal"]["value"], rel=0.15)
        assert sum(spent.values()) == pytest.approx(second, rel=0.15)
        assert spent["scoring"] == pytest.approx(step["training steps: seconds of scoring"]["value"] / 2, rel=0.15)
        unpruned = prices.seconds(whole, rates, host=False)["rollout"]
        assert unpruned == pytest.approx(lines["rollout, base: unpruned"]["value"], rel=0.15)


@pytest.mark.parametrize(
    ("preset", "passes", "graded"), [("stp", 36, 24), ("stp_spread", 72, 48), ("diffu_grpo", 420, 144)]
)
def test_canvases_of_an_8b_policys_update_are_those_that_the_docs_say(preset: str, passes: int, graded: int):
    cost = setting("llada-8b", preset=preset).cost
    assert (cost["likelihood"].forwards, cost["backward"].forwards) == (passes, graded)


def test_the_throughput_of_the_card_is_the_files():
    line = measured("results.json")["forward: base, of dense bf16 products"]
    assert prices.TFLOPS["h100"] == pytest.approx(line["value"], rel=0.01)


@pytest.mark.parametrize("name", ["bert-base", "tiny"])
def test_small_shapes_come_within_15_percent_of_the_card(name: str):
    lines = measured("results.json")
    rates = prices.rates_of_bench(BENCH / "results.json", name)
    if name == "bert-base":
        counted = lines["rollout: ragged prompts, calls"]
        took, calls, tokens = lines["rollout: ragged prompts"]["value"], counted["value"], counted["tokens"]
    else:
        took, calls, tokens = lines["rollout"]["value"], lines["rollout: a call"]["calls"], 0
    assert calls * rates.call + tokens * rates.token == pytest.approx(took, rel=0.15)


def test_an_8b_policys_memory_comes_within_15_percent_of_the_card():
    network = prices.replace(prices.NETWORKS["llada-8b"], rank=128)
    found = setting("llada-8b", stp_temporal="steps:0.6")
    args = STPConfig(preset="stp_spread", bf16=True, use_cpu=True, max_completion_length=256, output_dir="nowhere",
                     gradient_checkpointing=True)  # fmt: skip
    parts = prices.memory(network, found, args)
    line = measured("results_step.json")["training step: peak memory"]["value"]
    assert prices.peak(parts) / prices.GIB == pytest.approx(line, rel=0.15)
    rolled = parts["weights"] + parts["a rollout's forward and head"]
    peak = measured("results.json")["rollout, adapters: ours, temporal"]["peak_gib"]
    assert rolled / prices.GIB == pytest.approx(peak, rel=0.15)
    four = prices.memory(network, prices.replace(found, processes=4), args, sharded=True)
    for part in ("weights", "gradients", "optimiser"):
        assert four[part] == parts[part] / 4


def test_parameters_of_a_policy_are_counted_and_priced(tmp_path: Path):
    made = trainer(tmp_path, tiny(layers=2), preset="diffu_grpo")
    before = copy.deepcopy(made.policy.module.state_dict())
    network = prices.network_of(made.policy)
    parameters = list(made.policy.module.parameters())
    assert network.complete().parameters == network.complete().trained == sum(p.numel() for p in parameters)
    assert (network.hidden, network.layers, network.vocab) == (16, 2, len(tokenizer()))
    found = forecast(made.args, ROWS, tokenizer(), policy=made.policy)
    parts = prices.memory(network, found, made.args, cuda=False)
    assert parts["weights"] == parts["reference"] == sum(p.nbytes for p in parameters)
    assert parts["optimiser"] == 2 * parts["gradients"]
    rates = prices.calibrate(made.policy, found, made.args)
    assert min(rates.call, rates.token) >= 0
    assert min(rates.call + rates.token, rates.head_row) > 0
    assert rates.gradient >= 1
    assert all(p.grad is None for p in parameters)
    assert all(torch.equal(value, before[name]) for name, value in made.policy.module.state_dict().items())
    spent = prices.seconds(found, rates)
    assert spent.keys() == {*prices.PHASES, "host"}
    assert spent["gradient"] > 0


def test_a_price_is_linear_in_calls_and_tokens():
    seen = Seen()
    seen.phase = "rollout"
    seen.call(2, 20)
    seen.rows(3)
    seen.phase = "update"
    seen.call(1, 10)
    rates = prices.Rates(call=1.0, token=0.1, head_row=0.01, gradient=3.0, source="")
    assert [rates.of(call) for call in seen.calls] == pytest.approx([3.03, 6.0])


@pytest.mark.parametrize(
    ("shape", "word"), [("llada", "llada-8b"), ("hidden=3", "layers"), ("hidden=x,layers=1", "sizes")]
)
def test_an_unknown_shape_is_answered(shape: str, word: str):
    with pytest.raises(ConfigError, match=word):
        prices.network_named(shape)


def test_sizes_make_a_network():
    sizes = "hidden=64,layers=2,heads=4,kv_heads=2,ffn=128,vocab=100,rank=4"
    made = prices.network_named(sizes).complete()
    assert made.linear == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    per_block = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert made.trained == 2 * per_block
    assert made.parameters == made.linear + 2 * 100 * 64 + made.trained


FLAGS = ["estimate", "--max_completion_length=8", "--num_generations=2", "--per_device_train_batch_size=4"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4932, "0.493 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7200, "2 hours"), (864_000, "10 days")],
)
def test_a_duration_has_a_readable_unit(seconds: float, shown: str):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (900, "900 bytes"), (17_600, "17.2 KiB"), (3 << 20, "3 MiB"), (26.1 * (1 << 30), "26.1 GiB")],
)
def test_a_size_has_a_readable_unit(count: float, shown: str):
    assert size_of(count) == shown


def test_the_command_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "estimate.json"
    shape = ["--shape=llada-8b", "--preset=elbo", "--prompt_length=5", f"--json={path}"]
    assert main([*FLAGS, *shape, f"--bench={BENCH / 'results.json'}", "--use_peft=true"]) == 0
    shown = capsys.readouterr().out
    for word in ("canvases", "update, with gradient", "seconds of a batch", "H100", "at the peak", "every completion"):
        assert word in shown
    found = json.loads(path.read_text())
    assert found["counts"]["diffusion/forwards_rollout"] == 2 * 1 + 4 * 7, "a group's first forward is one"
    assert found["memory"]["weights"] > 15 * prices.GIB
    assert main([*FLAGS, *shape]) == 0
    assert "no throughput was given" in capsys.readouterr().out


def test_the_command_calibrates_the_tiny_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    sizes = ["--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2", f"--output_dir={tmp_path / 'no'}"]
    given = [flag for flag in FLAGS if "length" not in flag]
    assert main([*given, *sizes, "--num_processes=3"]) == 0
    shown = capsys.readouterr().out
    assert "on cpu" in shown
    assert "1 have no group" in shown
    assert not (tmp_path / "no").exists(), "nothing is trained or written"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shape=llada-8b", "--card=b200"], "h100"),
        (["--shape=1b", f"--bench={BENCH / 'results.json'}"], "holds no line"),
        (["--shape=1b", "--bench=nowhere.json"], "cannot be read"),
        (["--num_processes=0"], "at least 1"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main([*FLAGS, *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
