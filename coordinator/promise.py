"""What a re-plan was taken for, against the tokens that it brought. Pure."""

from agent.ids import Epoch

__all__ = ["Promise"]

# So many tokens make a judgement.
JUDGE_TOKENS = 20


class Promise:
    """The token time that the planner promised for the next plan, until it has been judged."""

    def __init__(self) -> None:
        self._epoch: Epoch | None = None
        self._promised_s: float | None = None
        self._token_s: list[float] = []

    def make(self, token_s: float) -> None:
        """Note what the plan that is being moved to shall bring."""
        self._epoch, self._promised_s = None, token_s

    def forget(self) -> None:
        """The plan did not come into force."""
        self._promised_s = None

    def in_force(self, epoch: Epoch) -> None:
        """The plan is in force; tokens count from now on."""
        self._epoch, self._token_s = epoch, []

    def token(self, epoch: Epoch, token_s: float) -> str:
        """Take in a token; return the judgement as key=value for a log, "" = none yet.

        Args:
            epoch: the plan in force.
            token_s: what the token took.
        """
        if self._promised_s is None or self._epoch is None or self._epoch != epoch:
            return ""
        self._token_s.append(token_s)
        if len(self._token_s) < JUDGE_TOKENS:
            return ""
        promised_s, measured_s = self._promised_s, sorted(self._token_s)[JUDGE_TOKENS // 2]
        self._promised_s = None
        return (
            f"epoch={epoch} predicted_ms={1e3 * promised_s:.2f} measured_ms={1e3 * measured_s:.2f}"
        )
