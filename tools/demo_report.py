"""Report how many of the demo model's greedy stories are consistent.

Does: the fixed prompts, greedy stories of them, also with weights rounded as boards hold them, and
counts. Does not: compute the model (`tools/demo_llama.py`) or define what is consistent
(`tools/story_checks.py`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from tools.demo_llama import Params, Shape, greedy
from tools.story_checks import find_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

SHOWN_PROMPTS: Final = (
    "",
    "Once upon a time",
    "One sunny morning, a little fox named",
    "Tom had a red kite.",
)
# No training story joins a listed hero and an object as these prompts do (a test checks it).
PROMPTS: Final = """
Mia had a green violin.
Max had a big rope.
One morning, Leo found a golden lantern
Once upon a time, Anna had a small boat.
There was once a small fox named Ruby who had a striped boat.
Once there was a clever owl called Felix.
Hugo was a quiet boy. He liked his golden trumpet.
It was the birthday of Zoe. She got a purple robot.
In a village near the sea, there lived a rabbit named Nora.
On a cold day in winter, Ben was playing with his yellow scarf.
A tiny mouse named Lucy lived in a big city.
One day, a brave dog named Oscar took a blue lantern to the river.
Sara went to the beach with her red hat.
Finn loved his new blue crown.
A little girl had a white doll. Her name was
Today was a happy day for Emma. She had a new umbrella.
Adam the bear had a shiny cape.
"I like my new telescope!" said Maya.
Once upon a time, in a dark forest, a young hedgehog named Milo had a doll.
Every day, Ella played with her orange bucket.
One windy afternoon, Sam walked to the hill. He had a spotted scooter with him.
Grandma gave Jack a brown bell.
Far away, near a lake, lived a duck named Ivy. She had a pink whistle.
Zara had a silver whistle.
Bilbo was a small mouse who lived in a garden. He had a black cape.
One evening, Priya was on the way home with her golden bicycle.
Tess and her little jar were the best of friends.
Omar wanted to play with his red kite, but
It was a warm summer day, and Clara was in the garden with a pretty kite.
Otto was a happy penguin with a blue basket.
"""


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def round_weights(params: Params, kind: str) -> Params:
    """Round to f16 or, the matrices only, to q8: blocks of 32 inputs with an f16 scale max/127."""
    rounded: Params = {}
    for name, value in params.items():
        if kind == "f16":
            rounded[name] = value.detach().half().float()
        elif value.dim() == 1:
            rounded[name] = value.detach()
        else:
            blocks = value.detach().view(len(value), -1, 32)
            scales = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
            steps = (blocks / scales.clamp(min=1e-12)).round().clamp(-127, 127)
            rounded[name] = (steps * scales).view_as(value)
    return rounded


def check_prompts(
    params: Params, shape: Shape, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[tuple[str, str, list[str]]]:
    """Continue each prompt greedily; return (prompt, story, what is wrong with it)."""
    results = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        new = greedy(params, shape, ids)
        story = tokenizer.decode(ids + new)
        wrong = find_problems(story, prompt)
        results.append((prompt, story, wrong))
    return results


def report_stories(params: Params, shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """Print the greedy stories to stderr and count the consistent ones.

    The shown prompts are judged with rounded weights too, as boards will hold them.
    """
    shown = check_prompts(params, shape, tokenizer, SHOWN_PROMPTS)
    varied = check_prompts(params, shape, tokenizer, PROMPTS.strip().split("\n"))
    for prompt, story, wrong in shown + varied:
        log(f"\nprompt: {prompt!r} wrong: {wrong}\n{story}")
    counts = {}
    for kind in ("f16", "q8"):
        again = check_prompts(round_weights(params, kind), shape, tokenizer, SHOWN_PROMPTS)
        counts[f"shown_consistent_{kind}"] = sum(not wrong for _, _, wrong in again)
        counts[f"shown_same_text_{kind}"] = sum(
            a[1] == b[1] for a, b in zip(shown, again, strict=True)
        )
    return {
        "shown_prompts": len(shown),
        "shown_consistent": sum(not wrong for _, _, wrong in shown),
        **counts,
        "varied_prompts": len(varied),
        "varied_consistent": sum(not wrong for _, _, wrong in varied),
    }
