"""Prompt templates of the literature, and chat templates applied by us so that a prefill can follow them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stp_rs.errors import ConfigError
from stp_rs.text import one_of, shown


@dataclass(frozen=True)
class PromptTemplate:
    r"""How a question is asked and how its answer is laid out.

    Example:
        >>> TEMPLATES["boxed"].completion("2 + 2 = 4.", "4")
        '2 + 2 = 4.\n\n\\boxed{4}'
    """

    instructions: str
    """Put before the question, `\\n\\n` between the two; empty for none."""
    suffix: str
    """Put after the question."""
    prefill: str
    """What the completion is made to start with: part of the prompt, not of the completion."""
    layout: str
    """The completion: `{solution}` and `{answer}` are filled in. It goes on where the prefill ends."""

    def question(self, question: str) -> str:
        """Return the user's message for a question."""
        return f"{self.instructions}\n\n{question}{self.suffix}" if self.instructions else question + self.suffix

    def completion(self, solution: str, answer: str) -> str:
        """Return the text that a worked solution and its answer make."""
        text = self.layout.replace("{solution}", solution).replace("{answer}", answer)
        return text.strip() if not solution else text


_TAGS = (
    "Reason first, then answer, in exactly this layout:\n"
    "<reasoning>\n...\n</reasoning>\n<answer>\n\\boxed{...}\n</answer>"
)

TEMPLATES: dict[str, PromptTemplate] = {
    "plain": PromptTemplate("", "", "", "\\boxed{{answer}}"),
    "boxed": PromptTemplate(
        "",
        "\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "",
        "{solution}\n\n\\boxed{{answer}}",
    ),
    "tags": PromptTemplate(
        _TAGS,
        "",
        "<reasoning>",
        "\n{solution}\n</reasoning>\n<answer>\n\\boxed{{answer}}\n</answer>",
    ),
}
"""Templates: `plain` (the question alone, the answer alone), `boxed`, and `tags` (prefilled, as in d1)."""


def get_template(name: str) -> PromptTemplate:
    """Return a template by name; ConfigError lists the names."""
    if name not in TEMPLATES:
        raise ConfigError(f"template: got '{name}', {one_of(name, TEMPLATES)}")
    return TEMPLATES[name]


def render(
    template: PromptTemplate,
    question: str,
    tokenizer: Any = None,
    examples: Sequence[tuple[str, str]] = (),
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return the whole prompt for a question, prefill included.

    Args:
        template: how to ask.
        question: what to ask.
        tokenizer: where it has a chat template, messages go through it (special tokens are in the text, so
            tokenise it without adding any); otherwise the messages are joined by blank lines.
        examples: (question, completion) pairs asked and answered before, for few-shot prompts.
        chat_template_kwargs: more arguments of the chat template.

    Raises:
        ConfigError: the chat template fails.
    """
    messages = []
    for asked, answered in examples:
        messages.append({"role": "user", "content": template.question(asked)})
        messages.append({"role": "assistant", "content": template.prefill + answered})
    messages.append({"role": "user", "content": template.question(question)})
    if getattr(tokenizer, "chat_template", None):
        options = dict(chat_template_kwargs or {})
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        except Exception as error:  # a chat template is a program of its own
            why = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            raise ConfigError(
                f"the tokenizer's chat template fails on the question {shown(question, 80)} with chat_template_kwargs "
                f"{options}: {why}"
            ) from error
        return str(text) + template.prefill
    body = "\n\n".join(str(message["content"]) for message in messages)
    return body if template is TEMPLATES["plain"] and not examples else f"{body}\n\n{template.prefill}"
