"""From what a user hands over, words or numbers, to the token ids of a prompt."""

import importlib.util
from collections.abc import Sequence

from kernels.errors import PromptError
from weights.directory import ModelDirectory
from weights.tokenizer import Tokenizer

__all__ = ["Prompts"]


class Prompts:
    """Reads prompts for one model.

    Args:
        directory: the model.

    Attributes:
        tokenizer: None for a model without one, or if its package is not installed.

    Raises:
        ModelError: tokenizer.json is damaged.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        self.tokenizer: Tokenizer | None = None
        self._why_none = ""
        if directory.path("tokenizer.json") is None:
            self._why_none = "this model has no tokenizer; give token ids with --prompt-ids"
        elif importlib.util.find_spec("tokenizers") is None:
            self._why_none = (
                "prompts in words need the Python package 'tokenizers'; add it with: "
                "pip install 'headwise[run]', or give token ids with --prompt-ids"
            )
        else:
            self.tokenizer = Tokenizer(directory)

    def read(self, prompt: str | None, prompt_ids: Sequence[int] | None) -> list[int]:
        """Return the token ids of a prompt in words, or the ids that are given instead.

        Raises:
            PromptError: both or neither is given, or words for a model without tokenizer.
        """
        if (prompt is None) == (prompt_ids is None):
            raise PromptError("give either a prompt or prompt ids")
        if prompt is None:
            return list(prompt_ids or ())
        if self.tokenizer is None:
            raise PromptError(self._why_none)
        return self.tokenizer.encode(prompt)
