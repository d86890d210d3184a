"""`headwise simulate replan`: how long a re-plan takes on one core.

25 agents, Llama-2-7B's shape (32 layers, 32 groups), memory from plenty to scarce.
"""

import argparse
import json
import random
import statistics
import time

from agent.ids import AgentName, ModelId
from coordinator.plan import Plan
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.holdings import Resident
from coordinator.planner.place import make_plan
from coordinator.planner.replan import Conditions, replan
from kernels.layout import Geometry, WeightFormat
from tools.simulation.options import check_range

__all__ = ["add_arguments", "run"]

LLAMA7B = Geometry(4096, 32, 32, 32, 128, 11008, 32000, WeightFormat.Q8, 1e-5)
N_AGENTS = 25
GBIT = Link(hop_s=150e-6, bytes_per_s=117e6)
REQUEST = PlanRequest(2048, 2048)
# Mean memory of an agent: plenty; what the model needs nearly three times over; 1.4 times.
MEMORY_MIB = (16000, 700, 500)


def _offers(n_agents: int, memory_mib: int, seed: int) -> list[Offer]:
    rng = random.Random(seed)
    return [
        Offer(
            AgentName(f"pi-{i}"),
            int(memory_mib * rng.uniform(0.6, 1.4) * 2**20),
            rng.uniform(3, 9) * 1e9,
        )
        for i in range(n_agents)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise simulate replan`."""
    parser.add_argument("--agents", type=int, default=25, help="agents (25)")
    parser.add_argument("--repeats", type=int, default=5, help="re-plans of each case (5)")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Measure, print rows (with -o text) and one JSON object, and return 0.

    Times are of this process's CPU.

    Raises:
        UsageError: options out of range.
    """
    check_range(args, ("agents",), 2, 100)
    check_range(args, ("repeats",), 0, 1000)
    rows = []
    for memory_mib in MEMORY_MIB:
        # The same memory in all, however many agents share it.
        boards = _offers(args.agents, memory_mib * N_AGENTS // args.agents, 0)
        plan = make_plan(ModelId("m"), LLAMA7B, boards, REQUEST, GBIT).plan
        for case, here, resident in _cases(boards, plan):
            now = Conditions(60.0, 1000, resident)
            row = _measure(plan, here, now, args.repeats)
            rows.append({"memory_mib": memory_mib, "case": case, **row})
            if args.output == "text":
                print(
                    f"{memory_mib:>6} MiB  {case:<30}{row['reason']:<8}"
                    f"{row['median_ms']:>6} ms, at most {row['most_ms']} ms"
                )
    print(json.dumps({"setting": "replan", "agents": args.agents, "layers": 32, "groups": 32,
                      "rows": rows}))  # fmt: skip
    return 0


def _cases(boards: list[Offer], plan: Plan) -> list[tuple[str, list[Offer], Resident | None]]:
    """Return what has happened to the boards since the plan was made."""
    at = next(
        i
        for i, o in enumerate(boards)
        if o.name == plan.members[min(2, len(plan.members) - 1)].agent
    )
    slow = list(boards)
    slow[at] = slow[at]._replace(bytes_per_s=0.35 * slow[at].bytes_per_s)
    return [
        ("unchanged", boards, None),
        ("one slowed", slow, None),
        ("one slowed, weights resident", slow, Resident.everything(len(boards), LLAMA7B)),
        ("one lost", [*boards[:at], *boards[at + 1 :]], None),
    ]


def _measure(plan: Plan, here: list[Offer], now: Conditions, n_repeats: int) -> dict[str, object]:
    spent_s = []
    for _ in range(n_repeats):
        start_s = time.process_time()
        found = replan(plan, LLAMA7B, here, REQUEST, GBIT, now)
        spent_s.append(time.process_time() - start_s)
    return {
        "reason": found.reason,
        "median_ms": round(1e3 * statistics.median(spent_s), 1),
        "most_ms": round(1e3 * max(spent_s), 1),
    }
