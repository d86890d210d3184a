"""From a plan to what each member is told. Pure."""

from agent.ids import AgentName, Epoch, Rank, RunId
from agent.share import Assignment, LayerShare, count_atoms
from coordinator.plan import Plan
from kernels.layout import VOCAB_ROWS_PER_ATOM, Geometry

__all__ = ["assignments", "largest_reply_bytes"]


def assignments(
    plan: Plan,
    run_id: RunId,
    epoch: Epoch,
    *,
    manifest_bytes: int,
    context_tokens: int,
    kv_tokens: int,
    n_contexts: int,
    max_rows: int,
) -> dict[AgentName, Assignment]:
    """Return each member's assignment, by agent name; see `agent.share.Assignment`."""
    told: dict[AgentName, Assignment] = {}
    for stage in plan.stages:
        for member in stage.members:
            held = {share.layer: share for share in member.layers}
            layers = range(stage.first_layer, stage.first_layer + stage.n_layers)
            told[member.agent] = Assignment(
                run_id=run_id,
                epoch=epoch,
                rank=Rank(len(told)),
                model_id=plan.model_id,
                manifest_bytes=manifest_bytes,
                layers=tuple(held.get(i, LayerShare(i)) for i in layers),
                vocab=member.vocab,
                wire=plan.wire,
                kv=plan.kv,
                context_tokens=context_tokens,
                kv_tokens=kv_tokens,
                n_contexts=n_contexts,
                max_rows=max_rows,
            )
    return told


def largest_reply_bytes(plan: Plan, geometry: Geometry, max_rows: int) -> int:
    """Return a bound on the bytes of one reply: residual rows in f32, or logits of every row."""
    n_rows = max(count_atoms(m.vocab) for m in plan.members) * VOCAB_ROWS_PER_ATOM
    return 4096 + 4 * max_rows * max(geometry.hidden_size, n_rows)
