"""`headwise bench`: how fast this machine's kernels run a model, next to how fast it reads memory.

The vocabulary is llama-bench's: `pp512` reads a prompt of 512 tokens, `tg128` writes 128 one after
the other, `-d` says how many tokens their context already holds. With `-o json` the last line of
stdout is one object: `results` has a row for each configuration (`bench_rows.Row`).
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from agent.resources import describe_machine, usable_cores
from agent.share import KV_HELP, KvFormat
from kernels.errors import UsageError
from tools.bandwidth import check_compiled, last_level_cache_bytes
from tools.bench_measure import Models, Start, check_memory, measure, start_kernels
from tools.bench_model import Setup, weights_bytes
from tools.bench_rows import Case, Phase, Row, check_fractions, csv_table, md_table, summarise
from weights.demo import demo_path
from weights.manifest import DType

__all__ = [
    "PREFILL_ROWS",
    "add_arguments",
    "json_line",
    "make_cases",
    "run",
    "run_fields",
    "start_line",
]

# As a coordinator sends them; its module would make the start slower that is measured here.
PREFILL_ROWS = 64
MAX_ROWS = 512
MAX_TOKENS = 1 << 20
MAX_THREADS = 256
MAX_REPEATS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise bench`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "-m", "--model", type=Path, metavar="DIR", help="model directory (default: the demo's)"
    )
    model.add_argument(
        "--shape", type=Path, metavar="FILE", help="config.json: random weights of that shape"
    )
    parser.add_argument(
        "--dtype", type=_dtypes, metavar="LIST", help="with --shape: of f32,f16,q8,q4 (default q8)"
    )
    for flag, name, least, most, default, text in (
        ("-p", "--prompt-tokens", 0, MAX_TOKENS, 512, "prompt lengths; 0: none"),
        ("-n", "--gen-tokens", 0, MAX_TOKENS, 128, "text lengths; 0: none"),
        ("-d", "--depth", 0, MAX_TOKENS, 0, "tokens that the context holds before"),
        ("-t", "--threads", 1, MAX_THREADS, usable_cores(), "numbers of threads"),
    ):
        parser.add_argument(
            flag, name, type=_numbers(least, most), metavar="LIST", default=(default,),
            help=f"{text}, separated by commas (default {default})",
        )  # fmt: skip
    parser.add_argument(
        "-r", "--repetitions", type=_number(1, MAX_REPEATS), default=5, metavar="N",
        help="measure each configuration N times; medians are shown (default 5)",
    )  # fmt: skip
    parser.add_argument(
        "-ub", "--rows", type=_number(1, MAX_ROWS), default=PREFILL_ROWS, metavar="N",
        help=f"most prompt tokens of one call (default {PREFILL_ROWS}, as in a cluster)",
    )  # fmt: skip
    parser.add_argument(
        "--exact", action="store_true", help="f32 activations and KV (default: 8 bits, and f16)"
    )
    parser.add_argument("--kv", choices=get_args(KvFormat), help=KV_HELP)
    parser.add_argument(
        "-o", "--output", choices=("md", "csv", "json"), default="md", help="default md"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code.

    Raises:
        HeadwiseError: wrong options, too little memory, or figures that cannot be right.
    """
    check_compiled()
    models = _models(args)
    cases = make_cases(
        args.prompt_tokens, args.gen_tokens, list(models.manifests), args.depth, args.threads
    )
    longest = max(case.depth + case.n_tokens for case in cases)
    setup = Setup(args.rows, longest, args.exact, args.kv)
    cache_bytes = last_level_cache_bytes()
    check_memory(models, setup, args.threads, cache_bytes)
    start = start_kernels(models, setup)
    print(start_line(start), file=sys.stdout if args.output == "md" else sys.stderr, flush=True)
    samples = measure(models, cases, setup, args.repetitions, cache_bytes)
    rows = [
        summarise(case, samples[case], weights_bytes(models.manifests[case.dtype]), cache_bytes)
        for case in cases
    ]
    check_fractions(rows)
    if args.output == "json":
        print(json_line(run_fields(args, models, setup, start, cache_bytes), rows))
    else:
        print({"md": md_table, "csv": csv_table}[args.output](rows))
    return 0


def make_cases(
    prompts: Iterable[int],
    texts: Iterable[int],
    dtypes: Sequence[str],
    depths: Sequence[int],
    threads: Sequence[int],
) -> list[Case]:
    """Return every combination; lengths of 0 ask for no test.

    Raises:
        UsageError: no test is asked for.
    """
    tests: list[tuple[Phase, int]] = [("pp", n) for n in prompts if n]
    tests += [("tg", n) for n in texts if n]
    if not tests:
        raise UsageError("nothing to measure: give -p or -n a number above 0")
    return [
        Case(*test, dtype, depth, n_threads)
        for test, dtype, depth, n_threads in itertools.product(tests, dtypes, depths, threads)
    ]


def _models(args: argparse.Namespace) -> Models:
    if args.shape is not None:
        return Models.random(args.shape, args.dtype or ("q8",))
    if args.dtype is not None:
        raise UsageError("a model directory has one --dtype; several go with --shape FILE")
    return Models.stored(args.model or demo_path())


def start_line(start: Start) -> str:
    """Return one line about how the kernels came."""
    return (
        f"first kernel result {start.start_s:.2f} s after the start of the process ({start.cache} "
        f"cache); kernels of all formats ready within {start.load_s:.2f} s, compiled now: "
        f"{', '.join(start.compiled) or 'none'}"
    )


def run_fields(
    args: argparse.Namespace, models: Models, setup: Setup, start: Start, cache_bytes: int
) -> dict[str, Any]:
    """Return what JSON says of the whole run."""
    return {
        "model": models.name,
        "machine": describe_machine(),
        "cores": usable_cores(),
        "last_level_cache_bytes": cache_bytes,
        "exact": args.exact,
        "kv": setup.kv_format,
        "repetitions": args.repetitions,
        "rows_per_call": args.rows,
        "weights": "mapped" if models.directory is not None else "memory",
        "start_s": start.start_s,
        "kernel_cache": start.cache,
        "load_s": start.load_s,
        "compiled": start.compiled,
    }


def json_line(fields: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the one object of `-o json`."""
    return msgspec.json.encode({**fields, "results": rows}).decode()


def _number(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers."""

    def parse(text: str) -> int:
        word = text.strip()
        # Its length is bounded before it is turned into a number, and after that the number.
        if not (word.isascii() and word.isdecimal() and len(word) <= 20):
            raise argparse.ArgumentTypeError(f"{word[:40]!r} is no whole number")
        if not least <= int(word) <= most:
            raise argparse.ArgumentTypeError(f"{word} is not possible; {least} to {most} are")
        return int(word)

    return parse


def _numbers(least: int, most: int) -> Callable[[str], tuple[int, ...]]:
    """Return a parser of lists such as 1,2,4; what is repeated counts once."""
    one = _number(least, most)

    def parse(text: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(one(word) for word in text.split(",")))

    return parse


def _dtypes(text: str) -> tuple[DType, ...]:
    known: dict[str, DType] = {dtype: dtype for dtype in get_args(DType)}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(
                f"{word[:40]!r} is no weight format; there are {', '.join(known)}"
            )
    return tuple(known[word] for word in dict.fromkeys(words))
