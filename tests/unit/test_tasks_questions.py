"""GSM8K and MATH: corrected and published rewards, prompts, and rows from data."""

import json
from pathlib import Path

import pytest

from stp_rs import tasks
from stp_rs.cli.run import load_run, make_task, run_training
from stp_rs.config import PolicyConfig, TaskConfig
from stp_rs.errors import ConfigError
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.tasks import competition, gsm8k, published
from stp_rs.tasks.templates import TEMPLATES, get_template, render

GSM8K = [
    {
        "question": f"What is {i} eggs and {i} eggs?",
        "answer": f"<<{i}+{i}={2 * i}>>{i} + {i} = {2 * i}\n#### {2 * i}",
    }
    for i in range(40)
]
MATH = [
    {
        "problem": f"Halve {i}.",
        "solution": f"Half of it is $\\boxed{{\\frac{{{i}}}{{2}}}}$.",
        "level": "Level 1",
    }
    for i in range(1, 30)
]


@pytest.mark.parametrize(
    ("completion", "answer", "corrected", "d1", "espo"),
    [
        ("<reasoning>\na\n</reasoning>\n<answer>\n18\n</answer>\n", "18", 1.0, 3.5, 1.0),
        ("<answer>\n\\boxed{18}\n</answer>", "18", 1.0, 0.126, 1.0),
        ("<answer>1,200</answer>", "1,200", 1.0, 2.0, 0.0),
        ("<answer>1,200.0</answer>", "1200", 1.0, 0.0, 0.0),
        ("<answer>-5</answer>", "-5", 1.0, 2.0, 1.0),
        ("The answer is 18.", "18", 1.0, 0.0, 1.0),
        ("The answer is 18. It is.", "18", 1.0, 0.0, 0.0),
        ("eggs: 18", "18", 0.0, 0.0, 1.0),
    ],
)
def test_gsm8k_rewards(completion: str, answer: str, corrected: float, d1: float, espo: float):
    assert gsm8k.gsm8k_correct([completion], answer=[answer]) == [corrected]
    assert published.d1_gsm8k([completion], answer=[answer]) == [pytest.approx(d1)]
    assert published.espo_gsm8k([completion], answer=[answer]) == [espo]


def test_ground_truths_of_gsm8k():
    for truth in ("18", "18.0", "$18", "so 9 * 2 = 18\n#### 18", 18, 18.0):
        assert gsm8k.gsm8k_correct(["\\boxed{18}"], answer=[truth]) == [1.0]
    assert gsm8k.gsm8k_answered(["\\boxed{7}", "7 eggs"], answer=["18", "18"]) == [0.1, 0.0]


@pytest.mark.parametrize(
    ("completion", "answer", "corrected", "d1"),
    [
        ("<answer>\\boxed{\\frac12}</answer>", "\\boxed{\\frac{1}{2}}", 1.0, 2.75),
        ("\\boxed{0.5}", "\\frac{1}{2}", 1.0, 2.25),
        ("\\boxed{.25}", "\\frac{1}{4}", 1.0, 0.25),
        ("<answer>\\frac{1}{4}</answer>", "\\boxed{\\frac{1}{4}}", 1.0, 0.75),
        ("\\boxed{2, 1}", "1, 2", 1.0, 0.25),
        ("\\boxed{3}", "4", 0.0, 0.25),
    ],
)
def test_math_rewards(completion: str, answer: str, corrected: float, d1: float):
    assert competition.math_correct([completion], answer=[answer]) == [corrected]
    assert published.d1_math([completion], answer=[answer]) == [pytest.approx(d1)]


def test_math_answered_needs_a_mark():
    assert competition.math_answered(["\\boxed{1}", "<answer>1</answer>", "1", "<answer></answer>"]) == [
        0.1,
        0.1,
        0.0,
        0.0,
    ]


def test_every_published_reward_is_there_by_name():
    names = {f"{who}_{what}" for who in ("d1", "espo") for what in ("gsm8k", "math", "countdown", "sudoku")}
    assert names <= set(tasks.REWARDS)
    assert all(tasks.get_reward(name).__name__ == name for name in tasks.REWARDS)
    with pytest.raises(ConfigError, match="d1_gsm8k"):
        tasks.get_reward("d2_gsm8k")


@pytest.mark.parametrize(("name", "data"), [("gsm8k", GSM8K), ("math", MATH)])
def test_tasks_over_data(name: str, data: list[dict[str, str]], tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, data)))
    task = tasks.get_task(name, data=path)
    rows = {split: task.rows(split, 1000, seed=0) for split in ("train", "validation", "test")}
    assert len(rows["train"]) == 1000
    seen = {split: {row["question"] for row in found} for split, found in rows.items()}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == len(data)
    assert all(seen.values())
    assert len(rows["test"]) == len(seen["test"])
    shown = task.demonstrations(50, seed=1)
    assert task.score([row["completion"] for row in shown], shown)["solved"] == [1.0] * 50
    for row in shown:
        assert set(row["prompt"] + row["completion"]) <= set(task.alphabet)
        assert len(row["prompt"]) <= task.prompt_length
        assert len(row["completion"]) < task.completion_length
    assert task.copies(shown[0]) == {}
    assert task.rows("train", 9, seed=0) == rows["train"][:9]
    assert task.load(path)[3]["question"] == (data[3].get("question") or data[3]["problem"])


def test_worked_solutions_lose_their_calculator_marks():
    row = tasks.get_task("gsm8k", data=GSM8K, style="tags").load(GSM8K)[4]
    assert row["solution"] == "4 + 4 = 8"
    assert row["answer"] == "8"
    shown = tasks.get_task("gsm8k", data=GSM8K, style="tags").demonstrations(1, seed=0)[0]
    assert shown["prompt"].endswith("<reasoning>")
    assert shown["completion"].endswith(f"</reasoning>\n<answer>\n\\boxed{{{shown['answer']}}}\n</answer>")


class ChatTokenizer:
    """What we use of a tokenizer with a chat template."""

    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_prompts():
    tags, plain = get_template("tags"), get_template("plain")
    assert render(plain, "2+2?") == "2+2?"
    assert render(tags, "2+2?").endswith("2+2?\n\n<reasoning>")
    chat = render(tags, "2+2?", ChatTokenizer(), examples=[("1+1?", "\n2")])
    assert chat.startswith("<user>")
    assert chat.endswith("<assistant><reasoning>")
    assert "<assistant><reasoning>\n2<user>" in chat
    task = tasks.get_task("gsm8k", data=GSM8K, tokenizer=ChatTokenizer())
    assert task.rows("test", 1, seed=0)[0]["prompt"].endswith("<assistant><reasoning>")
    with pytest.raises(ConfigError, match=r"plain, boxed, tags"):
        get_template("none")
    assert set(TEMPLATES) == {"plain", "boxed", "tags"}


def test_errors_name_the_column_and_show_the_row():
    with pytest.raises(ConfigError, match=r"no column 'question'|no column 'answer'.*4"):
        tasks.get_task("gsm8k", data=[{"question": "4"}])
    with pytest.raises(ConfigError, match=r"row 0 has no final answer.*none"):
        tasks.get_task("gsm8k", data=[{"question": "4", "answer": "none"}])
    with pytest.raises(ConfigError, match=r"has no generator.*give data"):
        tasks.get_task("gsm8k").rows("train", 1, seed=0)
    with pytest.raises(ConfigError, match="has no generator"):
        tasks.get_task("math").demonstrations(1, seed=0)


def test_a_given_model_is_asked_through_its_own_chat_template(tmp_path: Path):
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("\n".join(map(json.dumps, GSM8K)))
    tokenizer = character_tokenizer("".join(sorted(set(json.dumps(GSM8K) + TEMPLATES["tags"].instructions + "|<>\n"))))
    module = tiny_policy(
        PolicyConfig(hidden_size=8, num_hidden_layers=1), vocab_size=len(tokenizer), max_length=300, seed=0
    )
    for folder, template in (
        ("plain", None),
        ("chat", "{% for m in messages %}|{{ m.role }}|{{ m.content }}{% endfor %}{{ thinking }}|"),
    ):
        tokenizer.chat_template = template
        module.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    options = {"task": "gsm8k", "data": str(data)}
    plain = make_task(TaskConfig(model_name_or_path=str(tmp_path / "plain"), **options)).rows("train", 1, seed=0)[0]
    assert plain["prompt"] == plain["question"]
    options |= {"model_name_or_path": str(tmp_path / "chat"), "output_dir": str(tmp_path / "run")}
    options |= {"max_completion_length": 16, "diffusion_steps": 4, "eval_size": 2, "train_size": 8, "stp_rollouts": 1}
    options["chat_template_kwargs"] = {"thinking": "not"}
    run_training(TaskConfig(num_generations=2, per_device_train_batch_size=4, **options))
    task = load_run(tmp_path / "run")[3]
    row = task.rows("train", 1, seed=0)[0]
    assert row["prompt"].startswith("|user|Reason first")
    assert row["prompt"].endswith(f"{row['question']}not|<reasoning>")


def test_a_chat_template_that_fails_says_on_what():
    class Failing(ChatTokenizer):
        def apply_chat_template(self, *given: object, **named: object) -> str:
            raise ValueError("thinking must be a bool")

    with pytest.raises(
        ConfigError, match=r"chat template fails on the question '2\+2\?'.*'thinking': 3.*must be a bool"
    ):
        render(get_template("tags"), "2+2?", Failing(), chat_template_kwargs={"thinking": 3})
