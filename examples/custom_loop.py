"""Your own training loop out of the public pieces: no trainer, no task class, no configuration file.

The toy problem: answer a digit with its square, two digits wide. Run it: python examples/custom_loop.py
"""

import argparse

import numpy as np
import torch

import stp_rs
from stp_rs.config.sections import LossConfig, PolicyConfig
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.models.base import passes_without_dropout
from stp_rs.train.warmup import warm_up

LENGTH, GROUP = 6, 8  # the canvas is "=81;" and two end-of-text tokens
SEED = 0


def square_reward(completions: list[str], prompts: list[str], **_columns: object) -> list[float]:
    """Return the share of right characters of "=NN;" for each completion."""
    wanted = [f"={int(p) ** 2:02d};" for p in prompts]
    return [sum(a == b for a, b in zip(c, w, strict=False)) / len(w) for c, w in zip(completions, wanted, strict=True)]


def train(steps: int, sft_steps: int) -> list[float]:
    """Train a tiny policy and return the mean reward of every step."""
    torch.set_num_threads(1)
    tokenizer = character_tokenizer("0123456789=;")
    module = tiny_policy(PolicyConfig(hidden_size=32), vocab_size=len(tokenizer), max_length=1 + LENGTH, seed=SEED)
    model = stp_rs.as_diffusion_model(module, tokenizer)
    rows = [{"prompt": str(digit)} for digit in range(10)]
    # the warm-up teaches the format and a wrong habit: the double instead of the square, four times out of five
    answers = [(d, answer) for d in range(10) for answer in [2 * d] * 4 + [d * d]]
    demonstrations = [{"prompt": str(d), "completion": f"={answer:02d};"} for d, answer in answers]
    warm_up(
        model,
        tokenizer,
        demonstrations,
        completion_length=LENGTH,
        steps=sft_steps,
        batch_size=40,
        learning_rate=3e-3,
        seed=SEED,
    )

    # one token per step, the last two of the free ones together; the format is given, so it is not decoded
    unmasking = stp_rs.Unmasking(LENGTH, temporal="fill_ratio:0.9")
    priors = [stp_rs.Template({0: "=", 3: ";"}, tokenizer)]
    design = stp_rs.Design("spread", 2)
    loss_config = LossConfig(epsilon=0.2, stp_negative_advantage_weight=0.2)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-3)
    history = []
    for step in range(steps):
        prompts = stp_rs.encode_prompts(rows, tokenizer, uids=range(len(rows))).repeat(GROUP, step=step)
        prior = stp_rs.compose_priors(priors, prompts, LENGTH)
        rollout = stp_rs.generate(model, prompts, unmasking, completion_length=LENGTH, prior=prior, seed=SEED)
        texts = stp_rs.decode_completions(rollout.token_ids, np.full(len(rollout), LENGTH), tokenizer)
        rewards, by_name = stp_rs.score_rewards([square_reward], texts, prompts.rows)
        advantages, metrics = stp_rs.group_advantages(rewards, prompts.group)
        rollout = rollout.replaced(completions=texts, reward=rewards, rewards=by_name, advantage=advantages)

        optimizer.zero_grad()
        with passes_without_dropout(model.module):
            for batch in rollout.minibatches(40, seed=SEED, epoch=step):
                masks = stp_rs.draw_masks(design, batch, seed=SEED)
                estimate = stp_rs.token_elbo(model, batch, masks)
                inputs = stp_rs.LossInputs(
                    new_RL=estimate,
                    old_RL=estimate.detach(),  # one update per rollout batch: the old policy is this one
                    advantages_R=torch.from_numpy(batch.weights()),
                    scored_RL=torch.from_numpy(masks.scored_RL).float(),
                )
                loss, _ = stp_rs.policy_loss(inputs, loss_config, num_completions=len(rows) * GROUP)
                loss.backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        optimizer.step()
        history.append(metrics["reward"])
        if step % 10 == 0 or step == steps - 1:
            forwards = rollout.stats["forwards"]
            print(f"step {step:3d}  reward {metrics['reward']:.3f}  forwards {forwards}  e.g. {texts[-1]}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sft_steps", type=int, default=150)
    options = parser.parse_args()
    rewards = train(options.steps, options.sft_steps)
    first, last = np.mean(rewards[:5]), np.mean(rewards[-5:])
    print(f"mean reward of the first five steps {first:.3f}, of the last five {last:.3f}")
