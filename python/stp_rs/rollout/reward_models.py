"""Rewards by sequence classifiers of transformers."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch

from stp_rs.errors import ConfigError


class RewardModel:
    """A reward function that is a sequence classifier of transformers: the reward is its (first) logit.

    Args:
        model: the classifier, or a folder or name that `from_pretrained` opens.
        tokenizer: its tokenizer; None opens the one that is stored beside the classifier.
        device: where it runs.
        chat_template_kwargs: for the tokenizer's chat template.

    Raises:
        ConfigError: the classifier or its tokenizer cannot be opened.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        device: torch.device | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if isinstance(model, str):
            model = _opened(AutoModelForSequenceClassification, model, num_labels=1)
        config = getattr(model, "config", None)
        if config is None:
            raise ConfigError(
                f"reward_funcs: got the module {type(model).__name__} without a config, needs a sequence classifier of "
                "transformers; wrap any other module in a function"
            )
        if getattr(config, "num_labels", 1) != 1:
            warnings.warn(
                f"reward {config._name_or_path}: the classifier has {config.num_labels} labels; the logit of the "
                "first one is the reward",
                stacklevel=2,
            )
        self.__name__ = PurePath(config._name_or_path).name or type(model).__name__
        self.tokenizer = _opened(AutoTokenizer, config._name_or_path) if tokenizer is None else tokenizer
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config.pad_token_id = self.tokenizer.pad_token_id  # a classifier reads the last token that is no padding
        self.model = (model if device is None else model.to(device)).eval()
        self._chat = dict(chat_template_kwargs or {})

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """Return the logit of each prompt with its completion."""
        texts = [
            prompt + completion
            if isinstance(completion, str)
            else self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False, **self._chat)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        options = {"return_tensors": "pt", "padding": True, "padding_side": "right", "add_special_tokens": False}
        batch = self.tokenizer(text=texts, **options).to(next(self.model.parameters()).device)
        with torch.inference_mode():
            return list(self.model(**batch).logits[:, 0].float().tolist())


def _opened(kind: Any, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"reward_funcs: {name!r} cannot be opened by {kind.__name__}: {error}") from error
