"""Faults on running streams: `python tools/soak.py --faults 200 --seed 1`.

A real `headwise serve` with several emulated boards; readers ask for texts without pause, greedy
and exact, and every token is compared with that of an undisturbed run made at the start. Boards
are killed, frozen, cut off, slowed to a tenth, drained; new ones join. The last line is one JSON
object; ends with 1 if a stream failed though the boards left sufficed, was wrong or lost, or if
something leaked. -v tells of each fault on stderr.
"""

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from agent.emulation import parse_rate
from agent.shell import run_verb
from kernels.errors import InputError
from tools.faults.campaign import Campaign, Options
from tools.faults.lab import make_cables
from tools.faults.site import Site
from tools.faults.strikes import MAX_GUESTS
from tools.faults.verdict import Verdict
from weights.demo import demo_path

__all__ = ["add_arguments", "run"]

WRONG = (Verdict.FAILED_THOUGH, Verdict.MISMATCHED, Verdict.LOST)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the soak."""
    add = parser.add_argument
    add("--faults", type=int, default=200, help="how many faults (200)")
    add("--seed", type=int, default=1, help="of their order, targets and times")
    add("--agents", type=int, default=4, help="boards, besides one guest at a time (4)")
    add("--readers", type=int, default=2, help="streams asked for at a time (2)")
    add("-m", "--model", type=Path, help="model directory (default: the demo)")
    add("-c", "--ctx", type=int, default=512, metavar="TOKENS", help="longest context (512)")
    add("-n", "--max-tokens", type=int, default=300, help="most tokens of a stream (300)")
    add("--bytes-per-s", type=parse_rate, default=5e7, help="rate of the boards (5e7)")
    add(
        "--memory", metavar="SIZE",
        help="what each board offers, as 64M (default: what this machine has)",
    )  # fmt: skip
    add(
        "--cables", choices=["auto", "lab", "proxy"], default="auto",
        help="lab: network namespaces of netlab, as root; proxy: through this process; auto: the "
        "lab if it can be had (default)",
    )  # fmt: skip
    add("--rate", default="1gbit", help="of the lab's cables (1gbit)")
    add("--deadline-s", type=float, default=180.0, help="a stream without end is lost then (180)")
    add("--mirror", action="store_true", help="the coordinator keeps mirrors of keys and values")
    add("--serve", default="", metavar="OPTIONS", help="more options of `headwise serve`")
    add("--keep", type=Path, metavar="DIR", help="keep the processes' logs there")


def run(args: argparse.Namespace) -> int:
    """Run the soak and print its report; returns 1 if anything is wrong.

    Raises:
        HeadwiseError: it could not begin.
    """
    if args.agents < 3 or args.faults < 1 or args.readers < 1:
        raise InputError(
            f"--agents {args.agents} --faults {args.faults} --readers {args.readers}; at least 3 "
            f"boards, 1 fault and 1 reader are needed"
        )
    # Ctrl-C too: a shell's background jobs ignore it otherwise.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = Options(
        args.faults, args.seed, args.agents, args.readers, args.ctx, args.max_tokens,
        args.deadline_s, args.verbose,
    )  # fmt: skip
    # Below /tmp whatever TMPDIR is: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hw-soak-", dir="/tmp") as root:
        try:
            report = _soak(args, options, Path(root))
        finally:
            if args.keep is not None:
                args.keep.mkdir(parents=True, exist_ok=True)
                for log in Path(root).glob("*.log"):
                    shutil.copy(log, args.keep)
    print(json.dumps(report))
    return int(any(report[name] for name in (*WRONG, "leaked", "problems")))


def _soak(args: argparse.Namespace, options: Options, root: Path) -> dict[str, object]:
    """Set a site up, disturb it and take it down again, whatever happens."""
    model = (args.model or demo_path()).resolve()
    mark = secrets.token_hex(8)
    cables = make_cables(args.cables, args.agents + MAX_GUESTS, args.rate, root, mark)
    serve = ("--exact", "-c", str(args.ctx), "--place", "spread", *args.serve.split())
    serve += ("--mirror",) if args.mirror else ()
    memory = ("--emulate-memory", args.memory) if args.memory else ()
    boards = ("--model-dir", model, *memory, "-v")
    site = Site(model, cables, serve, boards, args.bytes_per_s, root, mark)
    campaign = Campaign(site, model, options)
    left: list[int] = []
    try:
        report = campaign.run()
    finally:
        left = site.close()
    leaks = campaign.leaked(left)
    return report | {"leaked": len(leaks), "leaks": leaks, "cables": cables.name}


if __name__ == "__main__":
    sys.exit(run_verb("soak", "Faults on running streams.", (add_arguments, run)))
