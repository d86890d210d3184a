"""What the reader of a stream sees when one of three boards is killed, frozen or cut off.

`python tools/measure_survival.py --shape ../shared/models/configs/tinyllama_1b_chat_v1.0.json`
makes a random q8 model of that shape, reads 300 tokens undisturbed, then loses a board at token
100: once each by kill -9, SIGSTOP and a pulled cable. Prints the gap, what it may be (one prefill
of the same context on the boards left, a second, and what pulls take), and whether all tokens are
the same. Before each text the cluster rests, so that boards verify what they have. The last line
is one JSON object; ends with 1 if a text was not the same.
"""

import argparse
import itertools
import json
import random
import secrets
import statistics
import sys
import time
from pathlib import Path

from agent.emulation import parse_rate
from agent.shell import run_verb
from coordinator.admin_messages import Generate
from kernels.errors import InputError
from tools.faults.lab import goodput_bytes_per_s, make_cables
from tools.faults.schedule import Kind
from tools.faults.scratch import add_model_arguments, scratch
from tools.faults.site import Site
from tools.faults.survival import WAIT_S, Survival, measure
from weights.directory import ModelDirectory

__all__ = ["add_arguments", "run"]

HOWS = (Kind.KILL, Kind.FREEZE, Kind.CUT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement."""
    add = parser.add_argument
    add_model_arguments(parser)
    add(
        "--how", choices=[kind.value for kind in HOWS], action="append",
        help="repeatable (default: all three)",
    )  # fmt: skip
    add("--repeat", type=int, default=1, help="times for each (1)")
    add("--agents", type=int, default=3, help="boards (3)")
    add("--at", type=int, default=100, metavar="TOKEN", help="when the board is lost (100)")
    add("-n", "--tokens", type=int, default=300, help="of the text (300)")
    add("--prompt-tokens", type=int, default=16, help="of the prompt (16)")
    add("-c", "--ctx", type=int, default=512, help="longest context (512)")
    add(
        "--pull", action="store_true",
        help="boards hold only what plans gave them, and pull the rest (default: all weights are "
        "resident everywhere)",
    )  # fmt: skip
    add("--mirror", action="store_true", help="the coordinator keeps mirrors of keys and values")
    add("--bytes-per-s", type=parse_rate, help="rate of the boards (default: as this machine)")
    add("--cables", choices=["auto", "lab", "proxy"], default="auto", help="as of tools/soak.py")
    add("--rate", default="1gbit", help="of the lab's cables (1gbit)")
    add("--rest-s", type=float, default=8.0, help="rest before each text (8)")
    add("--serve", default="", metavar="OPTIONS", help="more options of serve")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 1 if a text was not that of the undisturbed run.

    Raises:
        HeadwiseError: it could not begin, or the cluster did not recover.
    """
    if not 1 <= args.at < args.tokens or args.prompt_tokens + args.tokens > args.ctx:
        raise InputError(
            f"--at {args.at} --tokens {args.tokens} --prompt-tokens {args.prompt_tokens} --ctx "
            f"{args.ctx}; the loss must lie within the text, and all of it within the context"
        )
    if args.agents < 2:
        raise InputError(f"--agents {args.agents}; one must be left: give at least 2")
    with scratch(args) as (root, model):
        report, found = _measure_all(args, model, root)
    for each in found:
        print(_line(each))
    print(json.dumps(report | {"losses": [each._asdict() for each in found]}))
    return int(not all(each.equal for each in found))


def _measure_all(
    args: argparse.Namespace, model: Path, root: Path
) -> tuple[dict[str, object], list[Survival]]:
    mark = secrets.token_hex(8)
    with ModelDirectory.open(model) as directory:
        vocab_size = directory.config.vocab_size
    rng = random.Random(1)
    prompt = [rng.randrange(vocab_size) for _ in range(args.prompt_tokens)]
    cables = make_cables(args.cables, args.agents, args.rate, root, mark)
    serve = ("--exact", "-c", str(args.ctx), "--place", "spread", *args.serve.split())
    serve += ("--mirror",) if args.mirror else ()
    boards: tuple[str | Path, ...] = () if args.pull else ("--model-dir", model)
    site = Site(model, cables, serve, (*boards, "-v"), args.bytes_per_s, root, mark)
    names = [f"board-{i + 1}" for i in range(args.agents)]
    try:
        site.await_listening()
        site.add(*names)
        site.await_ready(*names)
        time.sleep(args.rest_s)
        text = site.text(Generate(prompt_ids=prompt, max_tokens=args.tokens, wait_s=WAIT_S))
        wanted, times_s = [id for id, _ in text], [s for _, s in text]
        if len(wanted) < args.tokens:
            raise InputError(f"this model ends its text after {len(wanted)} tokens; lower --tokens")
        found: list[Survival] = []
        goodput = goodput_bytes_per_s(args.rate) if cables.name == "lab" else None
        for how in [Kind(how) for how in args.how or HOWS] * args.repeat:
            # Not always the same board: what it holds differs.
            name = names[len(found) % len(names)]
            time.sleep(args.rest_s)
            found.append(measure(site, how, name, prompt, wanted, args.at, goodput))
            print(_line(found[-1]), file=sys.stderr, flush=True)
    finally:
        site.close()
    token_s = statistics.median(b - a for a, b in itertools.pairwise(times_s))
    return {
        "agents": args.agents,
        "cables": cables.name,
        "rate": args.rate if cables.name == "lab" else None,
        "mirror": args.mirror,
        "weights": "pulled" if args.pull else "resident",
        "at_token": args.at,
        "undisturbed_token_s": token_s,
        "n_different_tokens": len(set(wanted)),
    }, found


def _line(found: Survival) -> str:
    if found.gap_s is None:
        return f"{found.how}: {found.n_tokens} tokens, then it failed: {found.reason}"
    prefill, limit = (
        "unknown" if s is None else f"{s:.3f} s" for s in (found.prefill_s, found.limit_s)
    )
    return (
        f"{found.how}: gap {found.gap_s:.3f} s of {limit} (a token {1e3 * found.token_s:.1f} ms, "
        f"one prefill {prefill}, {found.pulled_bytes} bytes pulled of {found.lost_bytes} lost), "
        f"{found.n_tokens} tokens, {'equal' if found.equal else 'NOT EQUAL'}"
    )


if __name__ == "__main__":
    sys.exit(run_verb("measure_survival", "Gaps in a stream.", (add_arguments, run)))
