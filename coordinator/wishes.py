"""What a wish of a client means for the migration that is under way. Pure but for what it calls."""

from collections.abc import Callable

from coordinator.inbox import Wish
from coordinator.moves import Moves
from coordinator.supervisor import Cordon, Drain, Event, InstallFailed

__all__ = ["heed"]


def heed(wish: Wish, moves: Moves, happen: Callable[[Event], None]) -> None:
    """Let the supervisor decide about a wish, and call a migration off that is against it.

    Nobody shall be given heads who is to be free of work, or to get nothing new. Once a text has
    changed over it would lose its plan: then the migration goes on, and another one follows.

    Args:
        wish: what a client wants.
        moves: has the migration.
        happen: tells the supervisor.
    """
    move = moves.move
    if isinstance(wish, Drain | Cordon) and move is not None and wish.name in move.targets:
        what = "drained" if isinstance(wish, Drain) else "cordoned"
        why = f"agent {wish.name!r}, to which it leads, is {what}"
        if not move.has_moved and moves.abandon(why):
            # First: the wish is another chance, for which nobody waits.
            happen(InstallFailed(why, kept=True))
    happen(wish)
