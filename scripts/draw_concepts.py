"""Draw the pictures of docs/concepts.md from what the library does.

python scripts/draw_concepts.py docs/img

`pruning.svg` shows four rollouts forward by forward, `designs.svg` the masks that designs draw for one of them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import stp_rs
from stp_rs.config import PolicyConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.types import Mark

LENGTH = 12
ANCHORS = {0: "[", 3: ",", 6: ",", 9: ",", 11: "]"}
CELL, GAP, HEAD = 18, 70, 44
NOW, BEFORE, PRIOR, EMPTY = "#0b7a75", "#bfe3e0", "#d9822b", "#ffffff"


def rollout(*, spatial: bool, temporal: str) -> Rollout:
    """Return one completion of twelve tokens, decoded in a random order that only the seed decides."""
    tokenizer = character_tokenizer("0123456789[],")
    config = PolicyConfig(hidden_size=16, num_hidden_layers=1)
    model = stp_rs.as_diffusion_model(
        tiny_policy(config, vocab_size=len(tokenizer), max_length=LENGTH + 4, seed=0), tokenizer
    )
    prompts = stp_rs.encode_prompts([{"prompt": "7"}], tokenizer, uids=[1])
    prior = stp_rs.Template(ANCHORS, tokenizer)(prompts, LENGTH) if spatial else None
    unmasking = stp_rs.Unmasking(LENGTH, temporal=temporal, confidence="random")
    return stp_rs.generate(model, prompts, unmasking, completion_length=LENGTH, prior=prior, seed=3)


def square(x: float, y: float, fill: str, mark: str = "") -> str:
    """Return one cell; `mark` is told apart by shape too: a prior's token, or one that is revealed just now."""
    parts = [f'<rect x="{x:g}" y="{y:g}" width="{CELL - 2}" height="{CELL - 2}" fill="{fill}" stroke="#8a8f98"/>']
    middle = f'cx="{x + CELL / 2 - 1:g}" cy="{y + CELL / 2 - 1:g}"'
    if mark == "prior":
        parts.append(f'<path d="M{x + 4:g} {y + 4:g}h{CELL - 10}v{CELL - 10}h-{CELL - 10}z" fill="white"/>')
    elif mark == "now":
        parts.append(f'<circle {middle} r="4" fill="white"/>')
    return "".join(parts)


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def page(width: float, height: float, parts: Sequence[str]) -> str:
    """Return a whole picture, on white so that it is read in a dark theme too."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    body = "\n".join(parts)
    style = 'font-family="sans-serif" fill="#1c2530"'
    return f'{head} {style}>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def pruning() -> str:
    """Return the picture of four rollouts: a row is a forward, a column a position of the completion."""
    panels = [
        ("no pruning", rollout(spatial=False, temporal="none")),
        ("spatial: a prior fixes five tokens", rollout(spatial=True, temporal="none")),
        ("temporal: the tail is committed together", rollout(spatial=False, temporal="steps:0.6")),
        ("both", rollout(spatial=True, temporal="steps:0.6")),
    ]
    wide = CELL * LENGTH + GAP
    parts = []
    for i, (title, made) in enumerate(panels):
        step_L, forwards = made.unmask_step[0], int(made.nfe[0])
        left, top = GAP / 2 + wide * (i % 2), HEAD + (i // 2) * (CELL * LENGTH + 70)
        parts += [text(left, top - 24, title), text(left, top - 9, f"{forwards} forwards")]
        for s in range(forwards):
            for p, step in enumerate(step_L.tolist()):
                fill, mark = EMPTY, ""
                if step == Mark.PRIOR:
                    fill, mark = PRIOR, "prior"
                elif step == s:
                    fill, mark = NOW, "now"
                elif step < s:
                    fill = BEFORE
                parts.append(square(left + CELL * p, top + CELL * s, fill, mark))
    height = HEAD + CELL * (LENGTH + int(panels[2][1].nfe[0])) + 90
    names = (
        ("masked", EMPTY, ""),
        ("fixed by a prior", PRIOR, "prior"),
        ("revealed now", NOW, "now"),
        ("revealed before", BEFORE, ""),
    )
    for i, (name, fill, mark) in enumerate(names):
        x = GAP / 2 + 120 * i
        parts += [square(x, height - 4, fill, mark), text(x + CELL + 3, height + 9, name, size=11)]
    return page(2 * wide, height + 24, parts)


DESIGNS = (
    ("mean_field", 1, "everything masked, once (Diffu-GRPO)"),
    ("uniform_count", 4, "independent masks (LLaDA, VRPO)"),
    ("coupled", 4, "masks and their complements (ESPO)"),
    ("trajectory", 4, "states of the rollout (TraceRL)"),
    ("spread", 2, "every token about once (the default)"),
    ("spread", 4, "the same with four passes"),
)


def designs() -> str:
    """Return the picture of masks: a row is a pass, a column a position; below stands each token's total weight."""
    made = rollout(spatial=True, temporal="steps:0.6")
    wide, high = CELL * LENGTH + GAP, 4 * CELL + 100
    parts = []
    for i, (name, passes, words) in enumerate(DESIGNS):
        masks = stp_rs.draw_masks(stp_rs.Design(name, passes), made, seed=5)
        left, top = GAP / 2 + wide * (i % 2), HEAD + high * (i // 2)
        parts += [text(left, top - 24, f"{name}, K = {passes}"), text(left, top - 9, words, size=11)]
        most = float(masks.weight_PL.max())
        for k, (mask_L, weight_L) in enumerate(zip(masks.mask_PL, masks.weight_PL, strict=True)):
            for p in range(LENGTH):
                x, y = left + CELL * p, top + CELL * k
                if made.unmask_step[0, p] == Mark.PRIOR:
                    parts.append(square(x, y, PRIOR, "prior"))
                else:
                    parts.append(square(x, y, EMPTY if mask_L[p] else BEFORE))
                    size = (CELL - 6) * float(weight_L[p]) / most
                    if mask_L[p] and size > 0:
                        at = f'x="{x + CELL / 2 - 1 - size / 2:.1f}" y="{y + CELL / 2 - 1 - size / 2:.1f}"'
                        parts.append(f'<rect {at} width="{size:.1f}" height="{size:.1f}" fill="{NOW}"/>')
        share_L = masks.weight_PL.sum(0)
        share_L = share_L * masks.scored_RL[0].sum() / share_L.sum()
        base = top + CELL * len(masks.mask_PL) + 32
        for p, share in enumerate(share_L.tolist()):
            bar = 12 * share
            at = f'x="{left + CELL * p:g}" y="{base - bar:.1f}"'
            parts.append(f'<rect {at} width="{CELL - 2}" height="{bar:.1f}" fill="#53606e"/>')
        parts.append(text(left, base + 12, "total weight of each token", size=10))
    return page(2 * wide, HEAD + 3 * high, parts)


PICTURES = {"pruning.svg": pruning, "designs.svg": designs}


def main() -> None:
    """Write the pictures into a folder."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name, draw in PICTURES.items():
        Path(sys.argv[1], name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
