"""Every family's row of docs/models.md on its stand-in: opened, called, decoded, scored, adapted, trained, saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs import STPConfig, STPTrainer
from stp_rs.cli.main import main
from stp_rs.data.prompts import encode_prompts
from stp_rs.errors import CheckpointError, ModelError
from stp_rs.models.base import block_size_of, encode, passes_without_dropout
from stp_rs.models.probes import probe
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import draw_masks
from tests.fixtures import ROWS, SMALL, ones
from tests.standins import STAND_INS, write

# peft and remote code read names that transformers has since given others
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning"),
]
SHIFTS = {"dream": 1}
BLOCKS = {"llada2": 4, "sdar": 4}
ATTENDS_PADS = {"llada"}
LAST_END = {"dream": "<|im_end|>", "llada": "<|eot_id|>", "llada_moe": "<|role_end|>"}


@pytest.fixture(params=STAND_INS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    return write(family, tmp_path / family)


def opened(folder: Path, **options: Any) -> tuple[Any, Any]:
    return stp_rs.load(folder, trust_remote_code=True, **options)


def canvases(policy: Any, rows: int = 3, width: int = 14) -> torch.Tensor:
    """Return canvases of plain tokens with some masks."""
    ids = torch.randint(5, 9, (rows, width), generator=torch.Generator().manual_seed(1))
    ids[:, 9:] = policy.mask_token_id
    return ids


def test_the_policy_has_its_familys_traits(family: str, folder: Path):
    policy, tokenizer = opened(folder)
    stand_in = STAND_INS[family]
    assert policy.logit_shift == SHIFTS.get(family, 0)
    assert block_size_of(policy) == BLOCKS.get(family, 0)
    assert tokenizer.mask_token == stand_in.mask
    assert policy.mask_token_id == tokenizer.convert_tokens_to_ids(stand_in.mask)
    assert set(policy.eos_token_ids) == {tokenizer.convert_tokens_to_ids(end) for end in stand_in.ends}
    assert policy.respects_padding is (family not in ATTENDS_PADS)
    assert policy.context_length == 96
    with pytest.raises(ModelError, match="a canvas of 97 tokens does not fit the model's 96 positions"):
        policy.hidden(canvases(policy, width=97), None)
    found = {f.name: f.passed for f in probe(policy, tokenizer)}
    assert all(found[name] for name in ("head", "attention", "mask token"))
    assert found["padding"] is (policy.respects_padding or policy.masks_pads)
    assert found["shift"] is None, "random weights cannot tell"


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(folder: Path):
    with pytest.raises(ModelError, match=r"run only with trust_remote_code=True \(--trust_remote_code true\)"):
        stp_rs.load(folder)


def test_the_gathered_head_gives_the_models_own_logits(folder: Path):
    policy, _ = opened(folder)
    ids = canvases(policy)
    with torch.no_grad(), passes_without_dropout(policy.module):
        gathered = policy.head(policy.hidden(ids, None).flatten(0, 1)[[3, 20, 41]])
        whole = policy.own_output(ids).logits.flatten(0, 1)[[3, 20, 41]]
    assert whole.std() > 0.05
    assert torch.allclose(gathered, whole, atol=1e-5)


def test_a_row_alone_is_the_row_in_a_padded_batch(folder: Path):
    policy, _ = opened(folder)
    lengths = np.array([7, 14, 5], np.int32)
    ids = canvases(policy)
    for row, length in enumerate(lengths):
        ids[row, length:] = policy.pad_token_id
    with torch.no_grad():
        together = policy.head(encode(policy, ids, lengths))
        for row, length in enumerate(lengths.tolist()):
            alone = policy.head(policy.hidden(ids[row : row + 1, :length], None))
            assert torch.allclose(together[row, :length], alone[0], atol=1e-5)


def rollout_of(policy: Any, tokenizer: Any, **options: Any) -> Any:
    prompts = encode_prompts([{"prompt": "012"}, {"prompt": "3[20]1"}, {"prompt": "0"}], tokenizer, uids=[4, 9, 2])
    sampler = stp_rs.Unmasking(10, **options)
    return stp_rs.generate(policy, prompts.repeat(2), sampler, completion_length=10, seed=3)


def test_rollouts_are_scored_under_the_law_that_drew_them(folder: Path):
    policy, tokenizer = opened(folder)
    rollout = rollout_of(policy, tokenizer)
    assert not np.isin(rollout.token_ids, [policy.mask_token_id]).any()
    assert (rollout.unmask_step >= 0).all()
    masks = draw_masks(stp_rs.Design("trajectory", 0), rollout, seed=0)
    with torch.no_grad(), passes_without_dropout(policy.module):
        scored = token_elbo(policy, rollout, masks)
    assert torch.allclose(scored, torch.from_numpy(rollout.logprob), atol=2e-4)
    replayed = stp_rs.replay_logprobs(policy, rollout)
    assert np.allclose(replayed, rollout.logprob, atol=2e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimates_have_gradients_for_every_parameter(folder: Path, checkpointing: bool):
    policy, tokenizer = opened(folder, gradient_checkpointing=checkpointing)
    rollout = rollout_of(policy, tokenizer)
    masks = draw_masks(stp_rs.Design("cover", 2), rollout, seed=0)
    with passes_without_dropout(policy.module):
        token_elbo(policy, rollout, masks).sum().backward()
    without = [name for name, p in policy.module.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not without
    plain, _ = opened(folder)
    with passes_without_dropout(plain.module):
        token_elbo(plain, rollout, masks).sum().backward()
    for (name, a), (_, b) in zip(policy.module.named_parameters(), plain.module.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_bfloat16_weights_sample_and_score_alike(folder: Path):
    policy, tokenizer = opened(folder, dtype="bfloat16")
    assert all(p.dtype == torch.bfloat16 for p in policy.module.parameters())
    rollout = rollout_of(policy, tokenizer)
    replayed = stp_rs.replay_logprobs(policy, rollout)
    assert np.isfinite(replayed).all()
    assert np.abs(replayed - rollout.logprob).mean() < 0.05


def test_adapters_go_where_the_family_says_and_nowhere_near_the_head(folder: Path):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    policy, tokenizer = opened(folder, use_peft=True, lora_r=2)
    adapted = {name for name, p in policy.module.named_parameters() if p.requires_grad}
    assert adapted
    assert all("lora_" in name for name in adapted)
    assert not any("lm_head" in name or "transformer.ff_out" in name for name in adapted)
    rollout = rollout_of(policy, tokenizer)
    assert np.allclose(stp_rs.replay_logprobs(policy, rollout), rollout.logprob, atol=2e-4)


def test_a_policy_trains_is_saved_and_opens_again(family: str, folder: Path, tmp_path: Path):
    policy, tokenizer = opened(folder)
    options = {
        **SMALL,
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "save_strategy": "steps",
        "learning_rate": 1e-2,
        "beta": 0.1,
    }
    options["num_iterations"] = 1
    del options["stp_rollouts"]
    made = STPTrainer(policy, ones, STPConfig(**options), ROWS, processing_class=tokenizer)
    first = made.train_step().metrics
    assert abs(first["diffusion/ratio_max"] - 1) < 1e-5
    assert abs(first["kl"]) < 1e-6
    assert np.isfinite(first["loss"])
    made.train()
    again, _ = opened(tmp_path / "run" / "checkpoint-2")
    ids = canvases(policy)
    with torch.no_grad():
        assert torch.equal(again.head(again.hidden(ids, None)), made.policy.head(made.policy.hidden(ids, None)))
    assert again.logit_shift == SHIFTS.get(family, 0)
    code = next((tmp_path / "run" / "checkpoint-2").glob("modeling_*.py"))
    code.write_text(code.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="its modelling code has changed since it was saved"):
        opened(tmp_path / "run" / "checkpoint-2")


def test_the_command_line_trains_one_step_and_goes_on(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from stp_rs.tasks import get_task

    folder = write(family, tmp_path / "model", alphabet=get_task("sums").alphabet)
    run = tmp_path / "run"
    arguments = ["train", "--task", "sums", "--model_name_or_path", str(folder), "--trust_remote_code", "true"]
    arguments += ["--output_dir", str(run), "--max_steps", "1", "--num_generations", "2", "--eval_size", "2"]
    arguments += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--train_size", "8"]
    assert main(arguments) == 0
    assert (run / "checkpoint-1").is_dir()
    assert main(["sample", str(run), "-n", "1"]) == 0
    capsys.readouterr()


PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
GSM8K = [{"question": f"What is {n} plus 3?", "answer": f"{n} + 3 = {n + 3}\n#### {n + 3}"} for n in range(30)]
MATH = [{"problem": f"What is ${n} + 3$?", "solution": f"It is $\\boxed{{{n + 3}}}$."} for n in range(30)]
RECIPES = {"llada_8b_gsm8k": ("llada", GSM8K), "dream_7b_math": ("dream", MATH), "sdar_4b_gsm8k": ("sdar", GSM8K)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_pass_a_dry_run_on_the_stand_in(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    stand_in, rows = RECIPES[recipe]
    room = "max_sequence_length" if stand_in == "llada" else "max_position_embeddings"
    folder = write(stand_in, tmp_path / "model", alphabet=PRINTABLE, **{room: 1024})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ["train", "--config", f"examples/recipes/{recipe}.yaml", "--dry_run", "--data"]
    arguments += [
        str(tmp_path / "rows.jsonl"),
        "--model_name_or_path",
        str(folder),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main([*arguments, "--max_completion_length", "12", "--diffusion_steps", "6"]) == 0
    shown = capsys.readouterr().out
    assert "free tokens, " in shown or "depends on the model" in shown
    assert "tokens fixed" in shown
    assert "at the peak: " in shown
    assert "dry run: one batch was decoded, scored and trained on; nothing was written" in shown
    assert "FAIL" not in shown
    assert not (tmp_path / "run").exists()


def test_probe_prints_traits_and_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write("sdar", tmp_path / "sdar")
    assert main(["probe", str(folder), "--trust_remote_code", "true"]) == 0
    shown = capsys.readouterr().out
    assert "StandInSDAR, family SDAR" in shown
    assert "block-causal, 4 tokens" in shown
    assert shown.count("ok   ") == 5
    assert main(["probe", str(folder)]) == 2
    assert "only with trust_remote_code=True" in capsys.readouterr().err
    untrained = write("dream", tmp_path / "dream")
    policy, tokenizer = opened(untrained)
    with torch.no_grad():
        policy.module.get_input_embeddings().weight[policy.mask_token_id] = 0
    policy.module.save_pretrained(untrained)
    assert main(["probe", str(untrained), "--trust_remote_code", "true"]) == 1
    assert "FAIL mask token" in capsys.readouterr().out
    assert tokenizer.mask_token == "<|mask|>"
