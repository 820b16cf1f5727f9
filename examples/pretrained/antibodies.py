"""RL of a real pretrained masked language model with a reward that is checked: AntiBERTy writes antibody loops.

AntiBERTy (arXiv 2112.07782; 25.8 million parameters, pretrained on 558 million antibody sequences) comes with its
weights in its package, so that nothing is downloaded when this runs. The policy fills 11 residues of the heavy chain's
third loop (CDR-H3); the chain before them is the prompt, and the chain behind them is a prior: known, so never decoded.
A loop passes where it has none of the motifs that degrade a drug in storage and a net charge of 0 to 2, which its
pretrained self does for one loop in seven. It trains on eight antibodies and is judged on five others.

Run it: make example-pretrained (or: pip install 'stp-rs[pretrained]'; python examples/pretrained/antibodies.py)
"""

import argparse
import copy
import importlib.util
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import stp_rs
from stp_rs import STPConfig, STPTrainer
from stp_rs.models import DiffusionModel
from stp_rs.priors import END, Copy, Vocabulary, allowed_tokens, compose_priors

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LOOP = 11
"""Residues of a loop: all are asked for this length, whatever the antibody's own has."""

TRAINED = {  # heavy chains of antibodies that are drugs, as published with their names
    "trastuzumab": "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSR"
    "WGGDGFYAMDYWGQGTLVTVSS",
    "adalimumab": "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAK"
    "VSYLSTASSLDYWGQGTLVTVSS",
    "bevacizumab": "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAK"
    "YPHYYGSSHWYFDVWGQGTLVTVSS",
    "rituximab": "QVQLQQPGAELVKPGASVKMSCKASGYTFTSYNMHWVKQTPGRGLEWIGAIYPGNGDTSYNQKFKGKATLTADKSSSTAYMQLSSLTSEDSAVYYCAR"
    "STYYGGDWYFNVWGAGTTVTVSA",
    "nivolumab": "QVQLVESGGGVVQPGRSLRLDCKASGITFSNSGMHWVRQAPGKGLEWVAVIWYDGSKRYYADSVKGRFTISRDNSKNTLFLQMNSLRAEDTAVYYCAT"
    "NDDYWGQGTLVTVSS",
    "atezolizumab": "EVQLVESGGGLVQPGGSLRLSCAASGFTFSDSWIHWVRQAPGKGLEWVAWISPYGGSTYYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCAR"
    "RHWPGGFDYWGQGTLVTVSS",
    "durvalumab": "EVQLVESGGGLVQPGGSLRLSCAASGFTFSRYWMSWVRQAPGKGLEWVANIKQDGSEKYYVDSVKGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAR"
    "EGGWFGELAFDYWGQGTLVTVSS",
    "ustekinumab": "EVQLVQSGAEVKKPGESLKISCKGSGYSFTTYWLGWVRQMPGKGLDWIGIMSPVDSDIRYSPSFQGQVTMSVDKSITTAYLQWNSLKASDTAMYYCAR"
    "RRPGQGYFDFWGQGTLVTVSS",
}
HELD_OUT = {
    "pembrolizumab": "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYC"
    "ARRDYRFDMGFDYWGQGTTVTVSS",
    "cetuximab": "QVQLKQSGPGLVQPSQSLSITCTVSGFSLTNYGVHWVRQSPGKGLEWLGVIWSGGNTDYNTPFTSRLSINKDNSKSQVFFKMNSLQSNDTAIYYCAR"
    "ALTYYDYEFAYWGQGTLVTVSA",
    "ipilimumab": "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYTMHWVRQAPGKGLEWVTFISYDGNNKYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAIYYCAR"
    "TGWLGPFDYWGQGTLVTVSS",
    "omalizumab": "EVQLVESGGGLVQPGGSLRLSCAVSGYSITSGYSWNWIRQAPGKGLEWVASITYDGSTNYNPSVKGRITISRDDSKNTFYLQMNSLRAEDTAVYYCAR"
    "GSHYFGHWHFAVWGQGTLVTVSS",
    "secukinumab": "EVQLVESGGGLVQPGGSLRLSCAASGFTFSNYWMNWVRQAPGKGLEWVAAINQDGSEKYYVGSVKGRFTISRDNAKNSLYLQMNSLRVEDTAVYYCVR"
    "DYYDILTDYYIHYWYFDLWGRGTLVTVSS",
}
CHAIN = re.compile(r"(?P<before>.*C[A-Z]{2})(?P<loop>[A-Z]+?)(?P<behind>WG[A-Z]GT.*)")

LIABILITIES = re.compile("N[GST]|D[GSP]|N[^P][ST]|M|C")
"""Deamidation, isomerisation and cleavage, N-glycosylation, oxidation, an unpaired cysteine."""


def charge(loop: str) -> int:
    """Return the net charge at neutral pH: lysine and arginine less aspartate and glutamate."""
    return sum((residue in "KR") - (residue in "DE") for residue in loop)


def passes(loop: str) -> bool:
    """Return whether a loop has no liability and a net charge of 0 to 2."""
    return not LIABILITIES.search(loop) and 0 <= charge(loop) <= 2


def no_liability_reward(completions: list[str], **_columns: object) -> list[float]:
    """Return 1 for each loop without a liability."""
    return [float(not LIABILITIES.search(text[:LOOP])) for text in completions]


def charge_reward(completions: list[str], **_columns: object) -> list[float]:
    """Return 1 for a net charge of 0 to 2, and 1/2 less for each unit beside it."""
    beside = [max(0 - charge(text[:LOOP]), charge(text[:LOOP]) - 2, 0) for text in completions]
    return [max(0.0, 1 - 0.5 * units) for units in beside]


def pass_reward(completions: list[str], **_columns: object) -> list[float]:
    """Return 1 for each loop that passes both."""
    return [float(passes(text[:LOOP])) for text in completions]


def weights() -> Path | None:
    """Return the folder in the package that holds AntiBERTy's weights; None where it is not installed.

    The package is not imported: its code needs an older transformers, and the weights are those of a plain BERT.
    """
    found = importlib.util.find_spec("antiberty")
    return Path(found.origin).parent / "trained_models" if found and found.origin else None


def open_policy(folder: Path) -> tuple[DiffusionModel, Any]:
    """Return the pretrained policy and a tokenizer with one token per residue."""
    words = {token: i for i, token in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").split())}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    make: Any = transformers.PreTrainedTokenizerFast
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    tokenizer = make(tokenizer_object=core, **special)
    # its heads for species and chain are left out, which transformers reports at length
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    auto: Any = transformers.AutoModelForMaskedLM
    module = auto.from_pretrained(folder / "AntiBERTy_md_smooth", local_files_only=True)
    transformers.logging.set_verbosity(level)
    return stp_rs.as_diffusion_model(module, tokenizer), tokenizer


def rows(antibodies: dict[str, str]) -> list[dict[str, str]]:
    """Return a row per antibody: the chain up to the loop is the prompt, and what is behind the loop a column."""
    found = [match for chain in antibodies.values() if (match := CHAIN.fullmatch(chain))]
    return [{"prompt": "[CLS]" + match["before"], "behind": match["behind"]} for match in found]


LENGTH = LOOP + len("WGQGTLVTVSS") + 1
"""Tokens of a completion: the loop, what is behind it, [SEP]."""


def priors(tokenizer: Any) -> list[Any]:
    """Return what is known of a completion: all that is behind the loop, and that the loop is made of residues."""

    def behind(row: dict[str, Any]) -> dict[int, str]:
        return dict(enumerate([*row["behind"], END], start=LOOP))

    return [Copy(behind, tokenizer), Vocabulary(lambda place: [*RESIDUES] if place < LOOP else None, tokenizer)]


@dataclass(frozen=True)
class Score:
    """What a policy writes for antibodies that it was not trained on."""

    loops: list[list[str]]
    """For each antibody."""
    own: float
    """Mean log-probability of a residue, along the order in which it was decoded."""
    base: float
    """The same under the pretrained policy."""

    @property
    def passed(self) -> float:
        """The share of loops that pass."""
        return float(np.mean([passes(loop) for loops in self.loops for loop in loops]))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of it, 95%."""
        n, z = sum(map(len, self.loops)), 1.96
        centre, half = (
            self.passed + z * z / (2 * n),
            z * math.sqrt(self.passed * (1 - self.passed) / n + (z / n / 2) ** 2),
        )
        return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))

    @property
    def distinct(self) -> float:
        """The share of an antibody's loops that are different, in the mean."""
        return float(np.mean([len(set(loops)) / len(loops) for loops in self.loops]))

    def __str__(self) -> str:
        """Return it in one line."""
        low, high = self.interval
        return (
            f"passes {self.passed:.2f} [{low:.2f}, {high:.2f}]  distinct {self.distinct:.2f}  log p of a residue "
            f"{self.base:.2f} under the pretrained policy, {self.own:.2f} under its own"
        )


def evaluate(policy: DiffusionModel, base: DiffusionModel, tokenizer: Any, each: int, seed: int) -> Score:
    """Return what the policy writes for the held-out antibodies, `each` loops for one."""
    held = rows(HELD_OUT)
    prompts = stp_rs.encode_prompts(held, tokenizer, uids=range(len(held))).repeat(each)
    known = priors(tokenizer)
    law = stp_rs.SamplingParams(1.0, allowed=allowed_tokens(known, prompts, LENGTH))
    prior = compose_priors(known, prompts, LENGTH)
    rollout = stp_rs.generate(
        policy, prompts, stp_rs.Unmasking(STEPS), completion_length=LENGTH, sampling=law, prior=prior, seed=seed
    )
    texts = stp_rs.decode_completions(rollout.token_ids, np.full(len(rollout), LENGTH), tokenizer)
    loops = [[text[:LOOP] for text in texts[i : i + each]] for i in range(0, len(texts), each)]
    before = rollout.logprob if policy is base else stp_rs.replay_logprobs(base, rollout, law)
    return Score(loops, float(rollout.logprob[:, :LOOP].mean()), float(before[:, :LOOP].mean()))


STEPS = 6
"""Denoising steps of a whole completion; the half of it that is known takes none."""
FROZEN = 4
"""Of the eight layers, the lower ones that are not trained: a backward pass is half as long."""


def train(policy: DiffusionModel, tokenizer: Any, *, updates: int, seed: int) -> None:
    """Train the upper layers of the policy on the eight antibodies."""
    encoder: Any = policy.module.get_submodule("bert.encoder")
    policy.module.get_submodule("bert.embeddings").requires_grad_(False)
    for layer in encoder.layer[:FROZEN]:
        layer.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        config = STPConfig(
            output_dir=folder,
            preset="stp",  # scores a state that the rollout visited: one pass per completion
            pruning="none",  # the priors are given as objects
            max_completion_length=LENGTH,
            diffusion_steps=STEPS,
            num_generations=8,
            per_device_train_batch_size=16,
            max_steps=updates,
            learning_rate=1e-4,
            warmup_steps=3,
            lr_scheduler_type="constant_with_warmup",
            beta=0.05,  # towards the pretrained policy: without it loops become alike, with 0.1 few are learned
            optim="adamw_torch",
            adam_beta2=0.99,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=5,
            use_cpu=True,
        )
        trainer = STPTrainer(
            policy,
            [no_liability_reward, charge_reward, pass_reward],
            config,
            rows(TRAINED),
            processing_class=tokenizer,
            priors=priors(tokenizer),
        )
        trainer.train()


def main() -> None:
    """Train with each seed and print what the held-out loops are before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--each", type=int, default=12, help="held-out loops per antibody")
    options = parser.parse_args()
    folder = weights()
    if folder is None:
        print("antiberty is not installed: pip install 'stp-rs[pretrained]', or make example-pretrained")
        return
    torch.set_num_threads(1)
    base, tokenizer = open_policy(folder)
    first = evaluate(base, base, tokenizer, each=options.each, seed=1000)
    print(f"pretrained: {first}", flush=True)
    after = []
    for seed in options.seeds:
        started, policy = time.process_time(), copy.deepcopy(base)
        train(policy, tokenizer, updates=options.updates, seed=seed)
        after.append(evaluate(policy, base, tokenizer, each=options.each, seed=1000))
        print(f"seed {seed}: {after[-1]}  ({time.process_time() - started:.0f} CPU seconds)", flush=True)
        print("  e.g.", *(loops[0] for loops in after[-1].loops), flush=True)
    collapsed = sum(score.distinct < 0.5 for score in after)
    print(
        f"{first.passed:.2f} before, {[round(s.passed, 2) for s in after]} after; {collapsed} of {len(after)} collapsed"
    )


if __name__ == "__main__":
    main()
