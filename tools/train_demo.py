"""Train the demo model that ships with the project and write it as a Hugging Face directory.

Does: the recipe: corpus (`tools/stories.py`), tokenizer, training, checkpoints, and the command
line. Does not: the model itself (`tools/demo_llama.py`), its report (`tools/demo_report.py`), or
the conversion to the headwise format.
Needs torch, tokenizers and safetensors, imported only when used; see `docs/demo-model.md`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools import stories
from tools.demo_llama import (
    BOS,
    EOS,
    SPECIALS,
    UNK,
    Params,
    Shape,
    forward,
    init_params,
    read_model,
    write_model,
)
from tools.demo_report import log, report_stories

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from tokenizers import Tokenizer

REPEAT_WEIGHT: Final = 4.0
Row = list[tuple[int, float]]  # tokens with their weights in the loss


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer that begins every text with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def encode_row(story: stories.Story, tokenizer: Tokenizer) -> Row:
    """Encode `<s> story </s>`; what repeats a word of the cast weighs more than other tokens."""
    encoding = tokenizer.encode(story.text)
    heavy: set[int] = set()
    for word in story.cast:
        places = [found.start() for found in re.finditer(rf"\b{word}\b", story.text)]
        for start in places[1:]:
            heavy.update(range(start, start + len(word)))
    weights = [REPEAT_WEIGHT if end - 1 in heavy else 1.0 for _, end in encoding.offsets]
    return [*zip(encoding.ids, weights, strict=True), (EOS, 1.0)]


def batches(
    source: Iterator[stories.Story], tokenizer: Tokenizer, batch: int
) -> Iterator[list[Row]]:
    """Yield batches of encoded stories of like length."""
    order = random.Random(0)
    while True:
        drawn = itertools.islice(source, 16 * batch)
        rows = sorted((encode_row(story, tokenizer) for story in drawn), key=len)
        pool = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        order.shuffle(pool)
        yield from pool


def loss_of(params: Params, shape: Shape, rows: list[Row], weighted: bool) -> torch.Tensor:
    """Compute the mean cross-entropy per token of a batch, in nats; padding does not count."""
    import torch
    from torch.nn import functional as nn

    longest = max(map(len, rows))
    padded = [row + [(UNK, 0.0)] * (longest - len(row)) for row in rows]
    ids = torch.tensor([[token for token, _ in row] for row in padded])
    weights = torch.tensor([[weight for _, weight in row[1:]] for row in padded]).flatten()
    if not weighted:
        weights = weights.clamp(max=1.0)
    logits = forward(params, shape, ids[:, :-1])
    each = nn.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (each * weights).sum() / weights.sum()


def held_out_loss(params: Params, shape: Shape, held_out: list[list[Row]]) -> float:
    """Average the loss over batches that no training step has seen."""
    import torch

    with torch.no_grad():
        losses = [float(loss_of(params, shape, rows, weighted=False)) for rows in held_out]
    return sum(losses) / len(losses)


def rate_at(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """Learning rate: linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Run the whole recipe and return the figures of the final report."""
    import torch

    start_s = time.monotonic()
    torch.manual_seed(args.seed)
    shape = Shape()
    sample = [s.text for s in itertools.islice(stories.stories(args.seed), 10000)]
    tokenizer = train_tokenizer(sample, shape.vocab_size)
    unseen = batches(stories.stories(args.seed + 1), tokenizer, args.batch)
    unseen_rows = list(itertools.islice(unseen, 16))
    params = init_params(shape)
    matrices = [p for p in params.values() if p.dim() > 1]
    vectors = [p for p in params.values() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95))
    n_tokens = 0
    source = batches(stories.stories(args.seed), tokenizer, args.batch)
    for step, rows in zip(range(args.steps), source, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps, args.rate)
        loss = loss_of(params, shape, rows, weighted=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        n_tokens += sum(map(len, rows))
        if step % 25 == 0:
            spent_s = time.monotonic() - start_s
            log(f"step={step} loss={loss.item():.4f} tokens={n_tokens} seconds={spent_s:.0f}")
        if (step + 1) % args.save_every == 0:
            write_model(args.out, params, shape, tokenizer)
            log(f"step={step} held_out={held_out_loss(params, shape, unseen_rows):.4f} saved")
    write_model(args.out, params, shape, tokenizer)
    return {
        "steps": args.steps,
        "stories": args.steps * args.batch,
        "tokens": n_tokens,
        "seconds": round(time.monotonic() - start_s),
        "parameters": sum(p.numel() for p in params.values()),
        "held_out_loss": round(held_out_loss(params, shape, unseen_rows), 4),
        **report_stories(params, shape, tokenizer),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, write the model and print one line of JSON."""
    parser = argparse.ArgumentParser(description="train the demo model")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of stories and weights (1)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (1500)")
    parser.add_argument("--batch", type=int, default=16, help="stories per step (16)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate (0.003)")
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch (2)")
    parser.add_argument("--check", action="store_true", help="only judge the model in --out")
    parser.add_argument("--save-every", type=int, default=200, help="steps per checkpoint (200)")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    if args.check:
        params, tokenizer = read_model(args.out)
        report = report_stories(params, Shape(), tokenizer)
    else:
        report = train(args)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
