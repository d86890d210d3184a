"""What people read about a cluster: who holds what, and how fast it went."""

from typing import TYPE_CHECKING

from agent.share import AtomRange, count_atoms, indices
from coordinator.plan import Member, Plan, Stage, member_weights_bytes
from coordinator.results import Result
from kernels.layout import COLUMNS_PER_ATOM, VOCAB_ROWS_PER_ATOM, Geometry

if TYPE_CHECKING:
    # Kernels take a second to import; `status` and others need tables only.
    from coordinator.cluster import Cluster

__all__ = ["format_bytes", "format_table", "placement_rows", "placement_table", "speed_line"]

HEADINGS = ["agent", "layers", "head groups", "query heads", "MLP columns", "vocabulary", "weights"]


def placement_table(cluster: "Cluster") -> str:
    """Return the plan in force as a table, one line an agent."""
    assert cluster.plan is not None
    return format_table([HEADINGS, *placement_rows(cluster.plan, cluster.directory.geometry)])


def placement_rows(plan: Plan, geometry: Geometry) -> list[list[str]]:
    """Return one row of cells a member, in rank order, matching HEADINGS."""
    rows = []
    for stage in plan.stages:
        for member in stage.members:
            last = stage.first_layer + stage.n_layers - 1
            groups = _alike(member, stage, "head_groups")
            rows.append(
                [
                    member.agent,
                    f"{stage.first_layer}-{last}",
                    groups,
                    _query_heads(member, stage, geometry),
                    _alike(member, stage, "columns", COLUMNS_PER_ATOM, geometry.n_columns),
                    _spans(member.vocab, VOCAB_ROWS_PER_ATOM, geometry.vocab_size),
                    format_bytes(member_weights_bytes(member, stage, geometry)),
                ]
            )
    return rows


def _query_heads(member: Member, stage: Stage, geometry: Geometry) -> str:
    groups = _of_each_layer(member, stage, "head_groups")
    if len(set(groups)) > 1:
        return "differ by layer"
    return _spans(groups[0], geometry.heads_per_group, geometry.n_heads)


def _alike(member: Member, stage: Stage, kind: str, size: int = 1, limit: int = 1 << 62) -> str:
    """Describe the ranges of all layers if they are alike, else how many atoms there are."""
    ranges = _of_each_layer(member, stage, kind)
    if len(set(ranges)) == 1:
        return _spans(ranges[0], size, limit)
    return f"{sum(count_atoms(r) for r in ranges)} atoms, differ by layer"


def _of_each_layer(member: Member, stage: Stage, kind: str) -> list[tuple[AtomRange, ...]]:
    """Return a member's ranges of one kind for every layer of its stage."""
    held = {share.layer: getattr(share, kind) for share in member.layers}
    layers = range(stage.first_layer, stage.first_layer + stage.n_layers)
    return [held.get(layer, ()) for layer in layers]


def _spans(ranges: tuple[AtomRange, ...], size: int, limit: int) -> str:
    """Return ranges of atoms as spans of what they hold, such as `0-3, 8-11`."""
    if not ranges:
        return "-"
    if len(ranges) > 4:
        return f"{len(indices(ranges))} atoms"
    ends = [(r.first * size, min((r.first + r.count) * size, limit) - 1) for r in ranges]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


def speed_line(result: Result) -> str:
    """Return one line: tokens, speed, time to first token, and where the time went."""
    t = result.timings
    return (
        f"{len(result.token_ids)} tokens at {t.decode_tokens_per_s:.1f} tokens/s, first after "
        f"{1000 * t.time_to_first_token_s:.0f} ms ({len(result.prompt_token_ids)} prompt tokens); "
        f"time: kernels {100 * t.kernels_share:.0f} %, exchange {100 * t.exchange_share:.0f} %, "
        f"coordinator {100 * t.coordinator_share:.0f} %; end: {result.finish_reason}"
    )


def format_bytes(n_bytes: float) -> str:
    """Return a size for people: `1.2 GiB`, `83 MiB`, `512 B`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"


def format_table(rows: list[list[str]]) -> str:
    """Return rows of cells as aligned columns, the first row underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
