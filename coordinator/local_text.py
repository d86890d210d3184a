"""A text of a cluster in this process, seen as `headwise run` sees one of a running coordinator."""

from collections.abc import Iterator

from coordinator.admin_messages import Generate
from coordinator.cluster import Cluster
from coordinator.report import placement_table
from coordinator.results import Token

__all__ = ["LocalText"]


class LocalText:
    """As `attach.RemoteText`.

    Args:
        cluster: with a plan in force.
        ask: which text.

    Raises:
        PromptError: it cannot be written.
    """

    def __init__(self, cluster: Cluster, ask: Generate) -> None:
        self.placement = placement_table(cluster)
        self.has_text = cluster.tokenizer is not None
        self.plan = cluster.plan
        self._generation = cluster.generate(
            ask.prompt,
            prompt_ids=ask.prompt_ids,
            max_tokens=ask.max_tokens,
            options=ask.options,
            stop=ask.stop,
        )
        self.close = self._generation.close
        self.result = self._generation.result

    def __iter__(self) -> Iterator[Token]:
        return self._generation
