"""Prompts of several lengths for any model, and what an undisturbed run makes of them."""

import random
from pathlib import Path
from typing import NamedTuple

from coordinator.admin_messages import Generate
from coordinator.prompts import Prompts
from kernels.errors import InputError
from tools.faults.site import Site
from weights.directory import ModelDirectory

__all__ = ["Prompt", "draw_prompts", "read_undisturbed"]

# Shares of the context that prompts take; the long ones are for faults that strike a prefill.
LENGTHS = (0.02, 0.1, 0.3, 0.5, 0.7)
OPENINGS = (
    "Once upon a time, there was a little girl named Mia. She had a red kite. ",
    "One day, a small dog went to the park. He saw a big tree. ",
    "Tom was a happy boy. He liked to play with his blue ball in the garden. ",
    "There was a fox who lived in the wood. It was very cold and the fox was sad. ",
    "The cat sat on the mat. It wanted to eat a fish. ",
)
# Texts shorter than this are over before a fault strikes.
MIN_TOKENS = 24
N_DRAWN = 3  # for each one that is wanted


class Prompt(NamedTuple):
    """One prompt, and the tokens of its text; () before it was written."""

    ids: tuple[int, ...]
    wanted: tuple[int, ...] = ()

    def ask(self, wait_s: float) -> Generate:
        """Return the request for the text, greedy."""
        return Generate(prompt_ids=list(self.ids), max_tokens=len(self.wanted), wait_s=wait_s)


def draw_prompts(model: Path, context_tokens: int, seed: int) -> list[Prompt]:
    """Return prompts of all lengths, more than are needed: words if the model knows any."""
    rng = random.Random(seed)
    drawn = []
    with ModelDirectory.open(model) as directory:
        tokenizer = Prompts(directory).tokenizer
        for share in LENGTHS * N_DRAWN:
            n = max(2, int(share * context_tokens))
            if tokenizer is None:
                ids = [rng.randrange(directory.config.vocab_size) for _ in range(n)]
            else:
                ids, text = [], ""
                while len(ids) < n:
                    text += rng.choice(OPENINGS)
                    ids = tokenizer.encode(text.strip())
            drawn.append(Prompt(tuple(ids[:n])))
    return drawn


def read_undisturbed(
    site: Site, drawn: list[Prompt], context_tokens: int, max_tokens: int
) -> list[Prompt]:
    """Return one prompt of each length whose text is long enough, with that text.

    Raises:
        InputError: the model ends nearly all texts at once.
        RemoteError: a text failed though nothing was disturbed.
    """
    found: dict[int, Prompt] = {}
    for prompt in drawn:
        n = len(prompt.ids)
        if n in found:
            continue
        most = min(max_tokens, context_tokens - n)
        text = site.text(Generate(prompt_ids=list(prompt.ids), max_tokens=most))
        if len(text) >= MIN_TOKENS:
            found[n] = Prompt(prompt.ids, tuple(id for id, _ in text))
    if len(found) < 2:
        raise InputError(
            f"this model's texts are shorter than {MIN_TOKENS} tokens after nearly every prompt; "
            f"take one that goes on, such as the demo model"
        )
    return list(found.values())
