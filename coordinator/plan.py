"""The plan: which member holds which atoms. Plain data, its checks and its file form.

A plan is a list of stages; a stage is a run of layers handled by a group of members. One stage
with all agents is head parallelism (Kafetzis et al. 2025), one agent per stage the layer ring of
MDI-LLM. Pure: no sockets, no clock. `planner.place` makes plans, `engine` carries them out.
"""

from collections import Counter
from typing import Literal

import msgspec

from agent.ids import AgentName, ModelId
from agent.share import AtomRange, KvFormat, LayerShare, WireFormat, count_atoms, indices
from kernels.errors import PlanError
from kernels.layout import Geometry

__all__ = [
    "Exchange",
    "Member",
    "Plan",
    "Stage",
    "check_model",
    "check_plan",
    "decode_plan",
    "encode_plan",
    "member_weights_bytes",
    "plan_weights_bytes",
]

MAX_PLAN_BYTES = 16 << 20
MAX_MEMBERS = 256

Exchange = Literal["star"]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One agent's atoms. Its rank is its place in the plan, counted over all stages.

    `layers` lists layers of the stage where it holds atoms; `vocab` may be held in any stage.
    """

    agent: AgentName
    layers: tuple[LayerShare, ...] = ()
    vocab: tuple[AtomRange, ...] = ()


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of layers [first_layer, first_layer + n_layers) and the members that share it."""

    first_layer: int
    n_layers: int
    members: tuple[Member, ...]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole placement, the same for every token until the next epoch."""

    model_id: ModelId
    stages: tuple[Stage, ...]
    wire: WireFormat = "f16"
    kv: KvFormat = "f16"
    exchange: Exchange = "star"
    context_tokens: int = 0

    @property
    def members(self) -> list[Member]:
        """All members in rank order."""
        return [m for s in self.stages for m in s.members]


def encode_plan(plan: Plan) -> bytes:
    """Return the plan as indented JSON, the form of plan files."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def decode_plan(data: bytes) -> Plan:
    """Parse a plan file; `check_plan` says whether it fits a model.

    Raises:
        PlanError: not JSON, a missing or unknown field, or absurd size.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"plan file has {len(data)} bytes; at most {MAX_PLAN_BYTES} are read")
    try:
        return msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise PlanError(
            f"plan file cannot be read: {e}; `headwise plan --json` prints a valid one"
        ) from e


def check_model(plan: Plan, model_id: str) -> None:
    """Check that a plan was made for this model.

    Raises:
        PlanError: it names another.
    """
    if plan.model_id != model_id:
        raise PlanError(
            f"plan is for model {plan.model_id}, this one is {model_id}; make one with "
            f"`headwise plan --json`"
        )


def check_plan(plan: Plan, geometry: Geometry) -> None:
    """Check that the plan holds every atom of the model exactly once.

    Raises:
        PlanError: naming the first layer and atom that is missing, doubled or out of range.
    """
    members = plan.members
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise PlanError(f"plan has {len(members)} members; 1 to {MAX_MEMBERS} are possible")
    repeated = [n for n, c in Counter(m.agent for m in members).items() if c > 1]
    if repeated:
        raise PlanError(
            f"plan names agent {repeated[0]!r} more than once; give each agent one entry"
        )
    next_layer = 0
    for stage in plan.stages:
        # Checked before expanding: a hostile stage must not allocate.
        if (
            stage.first_layer != next_layer
            or not 1 <= stage.n_layers <= geometry.n_layers - next_layer
        ):
            raise PlanError(
                f"plan has a stage of {stage.n_layers} layers from {stage.first_layer}; "
                f"expected one that starts at layer {next_layer} and ends at or before the "
                f"model's last layer, {geometry.n_layers - 1}"
            )
        next_layer += stage.n_layers
        _check_stage(stage, geometry)
    if next_layer != geometry.n_layers:
        raise PlanError(f"plan covers {next_layer} layers; the model has {geometry.n_layers}")
    _check_cover("vocab", "", [m.vocab for m in members], geometry.n_vocab_atoms)


def _check_stage(stage: Stage, geometry: Geometry) -> None:
    if not stage.members:
        raise PlanError(f"the stage from layer {stage.first_layer} has no members")
    last_layer = stage.first_layer + stage.n_layers - 1
    shares: dict[int, list[LayerShare]] = {i: [] for i in range(stage.first_layer, last_layer + 1)}
    for member in stage.members:
        seen: set[int] = set()
        for share in member.layers:
            if share.layer not in shares or share.layer in seen:
                raise PlanError(
                    f"agent {member.agent!r} lists layer {share.layer} twice or outside its "
                    f"stage (layers {stage.first_layer} to {last_layer})"
                )
            seen.add(share.layer)
            shares[share.layer].append(share)
    for layer, parts in shares.items():
        where = f" of layer {layer}"
        _check_cover("head group", where, [p.head_groups for p in parts], geometry.n_kv_heads)
        _check_cover("column atom", where, [p.columns for p in parts], geometry.n_column_atoms)


def _check_cover(kind: str, where: str, parts: list[tuple[AtomRange, ...]], n_atoms: int) -> None:
    for r in (r for part in parts for r in part):
        # Checked before expanding: a hostile range must not allocate.
        if r.first < 0 or r.count < 1 or r.first + r.count > n_atoms:
            raise PlanError(
                f"plan names {kind}s {r.first} to {r.first + r.count - 1}{where}; "
                f"the model has {kind}s 0 to {n_atoms - 1}"
            )
    if sum(count_atoms(part) for part in parts) > 2 * n_atoms:
        raise PlanError(f"plan holds {kind}s{where} more than once; hold each exactly once")
    times = Counter(i for part in parts for i in indices(part))
    for i in range(n_atoms):
        if times[i] != 1:
            problem = "is missing from the plan" if times[i] == 0 else f"is held {times[i]} times"
            raise PlanError(f"{kind} {i}{where} {problem}; hold each exactly once")


def member_weights_bytes(member: Member, stage: Stage, geometry: Geometry) -> int:
    """Return the bytes of weights that a member keeps resident, norms of its stage included."""
    n_bytes = stage.n_layers * geometry.layer_norms_bytes
    for share in member.layers:
        n_bytes += count_atoms(share.head_groups) * geometry.head_group_bytes
        n_bytes += count_atoms(share.columns) * geometry.column_bytes
    if member.vocab:
        n_bytes += count_atoms(member.vocab) * geometry.vocab_bytes + geometry.final_norm_bytes
    return n_bytes


def plan_weights_bytes(plan: Plan, geometry: Geometry) -> dict[AgentName, int]:
    """Return the bytes of weights that each member of a plan holds."""
    return {
        member.agent: member_weights_bytes(member, stage, geometry)
        for stage in plan.stages
        for member in stage.members
    }
