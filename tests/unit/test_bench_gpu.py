"""The bench of the GPU runs on a CPU, through the same code, on a small shape."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benches.gpu import __main__ as bench
from benches.gpu import published
from benches.gpu.network import Policy, make_network
from benches.gpu.report import Report
from stp_rs import as_diffusion_model

# peft reads a name that transformers has since given another one; dynamo looks at the gradients of what is no leaf
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
SHAPE = bench.in_small(bench.SHAPES["llada-8b"])


def run(folder: Path, *arguments: str) -> tuple[dict, Report]:
    path = folder / "results.json"
    report = bench.main(["--small", "--backend", "eager", "--device", "cpu", "--json", str(path), *arguments])
    return json.loads(path.read_text()), report


def test_every_part_runs_and_says_what_it_measured(tmp_path: Path):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    found, _ = run(tmp_path)
    assert found["errors"] == []
    assert {"card", "date", "torch", "transformers", "peft", "seconds"} <= found.keys()
    named = {line["name"]: line for line in found["results"]}
    assert named["weights after merging are those before"]["value"] == 1
    assert named["log-prob against fp32 adapters under autocast: adapters cast to bf16 once"]["value"] == 0
    assert named["likelihood: relative gap of the two values"]["value"] < 1e-4
    assert named["rollout, base: d1's loop"]["steps_made"] == SHAPE.batch.steps
    assert named["update: ours, stp"]["with_gradient"] == 2 * SHAPE.batch.rows, "two iterations of one canvas"
    assert {line["unit"] for line in found["results"]} <= {
        *("ms", "s", "TFLOP/s", "ratio", "nats", "graphs", "true", "share", "calls", "GiB", "left out")
    }


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_world: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(bench.PARTS, "bert-base", {"ragged": broken})
    found, _ = run(tmp_path, "--shape", "bert-base,tiny")
    assert [(error["part"], error["error"]) for error in found["errors"]] == [
        ("bert-base: ragged", "RuntimeError: no such kernel")
    ]
    assert any(line["part"] == "tiny: launches" for line in found["results"])


def test_a_part_is_stopped_at_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def endless(_world: object) -> None:
        while True:
            pass

    monkeypatch.setitem(bench.PARTS, "tiny", {"launches": endless})
    found, _ = run(tmp_path, "--shape", "tiny", "--budget", "0.2")
    assert "OutOfTimeError" in found["errors"][0]["error"]


def test_what_no_card_has_measured_comes_first_and_in_order(tmp_path: Path):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    found, report = run(tmp_path, "--unmeasured")
    assert found["errors"] == []
    made = [part for part in report.parts if "make the policy" not in part]
    large = ("caches", "precision", "published", "exits", "plain_step")
    assert made == ["tiny: launches", *(f"llada-8b: {part}" for part in large)]
    named = {line["name"]: line for line in found["results"]}
    whole, dual = (named[f"rollout, base, temporal: cache {kind}"]["tokens"] for kind in ("none", "dual"))
    assert dual < whole
    assert named["rollout's first fifth, adapters: precision same: correction"]["canvases"] > 0
    assert named["rollout's first fifth, adapters: precision fp8"]["why"].startswith("stp_rollout_precision: got fp8")


def test_what_no_time_is_left_for_is_said(tmp_path: Path):
    found, _ = run(tmp_path, "--unmeasured", "--shape", "tiny", "--seconds", "0")
    assert found["errors"] == []
    assert [line["name"] for line in found["results"]][:2] == ["tiny: launches", "llada-8b: caches"]
    assert {line["unit"] for line in found["results"]} == {"left out"}


def test_the_canvases_of_an_update_are_counted(tmp_path: Path):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    found, _ = run(tmp_path, "--shape", "llada-8b", "--parts", "update")
    assert found["errors"] == []
    named = {line["name"]: line for line in found["results"]}
    assert named["update: ours, stp_canvas"]["with_gradient"] == 2 * SHAPE.batch.rows // SHAPE.batch.group


@pytest.mark.parametrize(("seconds", "code"), [(300.0, 0), (0.01, None)])
def test_the_tests_of_a_card_come_first_and_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, code: int | None
):
    monkeypatch.setattr(bench, "TESTS", ("tests/unit/test_head_products.py",))
    monkeypatch.setattr(bench, "TESTS_SECONDS", seconds)
    found, _ = run(tmp_path, "--shape", "tiny", "--tests")
    assert found["tests"]["code"] == code
    assert code is None or any("skipped" in line or "passed" in line for line in found["tests"]["last"])
    assert found["errors"] == []


def test_an_unknown_part_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit):
        run(tmp_path, "--parts", "backward")


def test_the_network_is_bidirectional_and_splits_at_its_head():
    network = make_network(SHAPE, torch.device("cpu"), torch.float32)
    tokens = SimpleNamespace(mask_token_id=1, pad_token_id=0, eos_token_id=2)
    adapter, policy = as_diffusion_model(network, tokens), Policy(network)
    ids = torch.tensor([[5, 6, 1, 7], [8, 1, 0, 0]])
    lengths = torch.tensor([4, 2])
    with torch.no_grad():
        ours = policy.head(policy.hidden(ids, lengths))
        theirs = adapter.head(adapter.hidden(ids, lengths))
        alone = policy.head(policy.hidden(ids[1:, :2], None))
    assert adapter.respects_padding
    assert torch.allclose(ours[1, :2], alone[0], atol=1e-5)
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)


def test_d1s_loop_fills_the_canvas_and_keeps_the_prompt():
    network = make_network(SHAPE, torch.device("cpu"), torch.float32)
    prompt = torch.full((3, 5), 7)
    with torch.no_grad():
        canvas, made = published.rollout(
            lambda ids: network(ids).logits.index_fill(-1, torch.tensor([1]), -1e4),
            prompt,
            completion=16,
            steps=8,
            block=8,
            temperature=0.0,
        )
    assert made == 8
    assert torch.equal(canvas[:, :5], prompt)
    assert not (canvas == published.MASK).any()
