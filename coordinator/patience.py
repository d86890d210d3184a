"""How long a text that has lost a board waits for another plan. Pure."""

__all__ = ["RECOVER_S", "RETURN_S", "Patience"]

# At most so long altogether.
RECOVER_S = 120.0
# So long where no plan can be made of who is here: boards that were not heard for a moment, all of
# them in the worst case, are back within that time.
RETURN_S = 3.0


class Patience:
    """The patience of one text.

    Args:
        now_s: monotonic time at which it stopped.
    """

    def __init__(self, now_s: float) -> None:
        self._stopped_s = now_s
        self._hopeless_s: float | None = None

    def is_over(self, hopeless: bool, now_s: float) -> bool:
        """Tell whether to wait no longer.

        Args:
            hopeless: whether nothing can come of it unless other boards come.
            now_s: monotonic time.
        """
        if not hopeless:
            self._hopeless_s = None
        elif self._hopeless_s is None:
            self._hopeless_s = now_s
        since_s = self._hopeless_s
        return now_s - self._stopped_s > RECOVER_S or (
            since_s is not None and now_s - since_s >= RETURN_S
        )
