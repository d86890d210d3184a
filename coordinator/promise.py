"""What a re-plan was taken for, against the tokens that it brought. Pure."""

from typing import NamedTuple

from agent.ids import Epoch

__all__ = ["Judgement", "Promise"]

# So many tokens make a judgement.
JUDGE_TOKENS = 20
# Token times that are off by no more are as promised.
KEPT = 1.25


class Judgement(NamedTuple):
    """What a plan promised and what it kept: median token times."""

    epoch: Epoch
    promised_s: float
    measured_s: float

    @property
    def is_broken(self) -> bool:
        """Whether tokens take much longer than promised."""
        return self.measured_s > KEPT * self.promised_s

    def __str__(self) -> str:
        promised_ms, measured_ms = 1e3 * self.promised_s, 1e3 * self.measured_s
        return f"epoch={self.epoch} predicted_ms={promised_ms:.2f} measured_ms={measured_ms:.2f}"


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

    def token(self, epoch: Epoch, token_s: float) -> Judgement | None:
        """Take in a token; return the judgement, once.

        Args:
            epoch: the plan in force.
            token_s: what the token took.
        """
        if self._promised_s is None or self._epoch is None or self._epoch != epoch:
            return None
        self._token_s.append(token_s)
        if len(self._token_s) < JUDGE_TOKENS:
            return None
        promised_s, measured_s = self._promised_s, sorted(self._token_s)[JUDGE_TOKENS // 2]
        self._promised_s = None
        return Judgement(epoch, promised_s, measured_s)
