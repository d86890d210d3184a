"""What the coordinator grants on the bulk channel: to each agent the objects of its part."""

from collections.abc import Iterable, Mapping

from agent.bulk import BulkServer
from agent.grants import grant_seconds
from agent.ids import AgentName
from agent.member import wanted_atoms
from agent.share import Assignment
from coordinator.identity import LinkSecrets
from weights.manifest import Manifest

__all__ = ["grant_pulls"]


def grant_pulls(
    bulk: BulkServer,
    links: Iterable[LinkSecrets],
    told: Mapping[AgentName, Assignment],
    manifest: Manifest,
) -> None:
    """Let each agent pull the manifest and the atoms that its assignment names, nothing else."""
    for link in links:
        atoms = wanted_atoms(told[link.name], manifest)
        objects = [manifest.model_id, *(atom.hash for atom in atoms)]
        for_s = grant_seconds(sum(a.n_bytes for a in atoms))
        bulk.grant(link.bulk_token, objects, for_s, link.key)
