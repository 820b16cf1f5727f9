"""The example with a real pretrained model: its rewards on loops judged by hand; and, where installed, its policy."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "examples" / "pretrained" / "antibodies.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("stp_example_antibodies", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


LOOPS = {  # loop: (free of liabilities, net charge)
    "GLLWVRYFAAL": (True, 1),
    "GLLWVRYFMAL": (False, 1),  # oxidation
    "GLLWVRYFACL": (False, 1),  # an unpaired cysteine
    "GLNGVRYFAAL": (False, 1),  # deamidation
    "GLDPVRYFAAL": (False, 0),  # cleavage
    "GLNATRYFAAL": (False, 1),  # N-glycosylation
    "GLNPTRYFAAL": (True, 1),  # none behind N-P
    "GLLWVEYFAEL": (True, -2),
    "KLLKVRYKAAL": (True, 4),
}


def test_loops_are_judged_as_by_hand(example: Any):
    judged = {loop: (example.no_liability_reward([loop])[0] == 1.0, example.charge(loop)) for loop in LOOPS}
    assert judged == LOOPS
    right = [float(free and 0 <= charge <= 2) for free, charge in LOOPS.values()]
    assert example.pass_reward([loop + "WGQGTLVTVSS" for loop in LOOPS]) == right
    assert example.charge_reward(["GLLWVEYFAEL", "KLLKVRYAAAL", "KLLKVRYKAAL", "GLLWVEYFAAL"]) == [0.0, 0.5, 0.0, 0.5]


def test_no_antibody_is_trained_on_and_judged(example: Any):
    trained, held = example.rows(example.TRAINED), example.rows(example.HELD_OUT)
    assert (len(trained), len(held)) == (len(example.TRAINED), len(example.HELD_OUT)) == (8, 5)
    assert not {row["prompt"] for row in trained} & {row["prompt"] for row in held}
    assert all(len(row["behind"]) == example.LENGTH - example.LOOP - 1 for row in trained + held)


def test_the_pretrained_policy_knows_antibodies_and_fills_loops(example: Any):
    folder = example.weights()
    if folder is None:
        pytest.skip("the pretrained extra is not installed")
    policy, tokenizer = example.open_policy(folder)
    assert (policy.mask_token_id, policy.eos_token_id, policy.context_length) == (4, 3, 512)
    chain = next(iter(example.HELD_OUT.values()))
    ids = torch.tensor([tokenizer("[CLS]" + chain + "[SEP]", add_special_tokens=False)["input_ids"]])
    masked = ids.clone()
    masked[0, 1:90:5] = policy.mask_token_id
    with torch.no_grad():
        found = policy.head(policy.hidden(masked, None)[0, 1:90:5]).argmax(-1)
    assert (found == ids[0, 1:90:5]).float().mean() > 0.7, "it would be 0.05 with random weights"
    score = example.evaluate(policy, policy, tokenizer, each=1, seed=1)
    assert all(len(loop) == example.LOOP and set(loop) <= set(example.RESIDUES) for (loop,) in score.loops)
    assert -3.0 < score.base == score.own < -1.0
