"""Live processes against a peer that sends anything. Long: python -m tests.protocol.hostile."""

import pytest

from tests.protocol.hostile import Mutator, attack_agent, attack_coordinator

pytestmark = pytest.mark.slow

N_MESSAGES = 60_000


@pytest.mark.parametrize("attack", [attack_agent, attack_coordinator])
def test_mutated_messages_break_nothing_and_leave_nothing(attack, tmp_path):
    report = attack(11, N_MESSAGES, tmp_path)
    assert report["n_sent"] > 0.9 * N_MESSAGES
    grown = report["resident_last_bytes"] / report["resident_first_bytes"]
    assert grown < 1.05, report


def test_the_same_seed_makes_the_same_messages():
    good = [b"abcdefgh" * 9, b"0123456789"]
    first, again = Mutator(5, good), Mutator(5, good)
    assert [first.message() for _ in range(300)] == [again.message() for _ in range(300)]
