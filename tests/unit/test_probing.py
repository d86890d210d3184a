"""When links are probed: one at a time, rarely, and never while somebody is served."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.ids import AgentName
from coordinator.probing import GIVE_UP_S, PERIOD_S, QUIET_S, STALE_S, Probing, Seen

A, B, C = AgentName("a"), AgentName("b"), AgentName("c")


def test_each_link_that_nothing_has_measured_is_probed_and_then_once_more():
    probing, measured, told = Probing(), dict.fromkeys((A, B, C)), []
    for i in range(600):
        now_s = 0.1 * i
        chosen = probing.next([Seen(n, 0.0, at) for n, at in measured.items()], False, now_s)
        if chosen is not None:
            told.append((chosen, now_s))
            measured[chosen] = now_s + 0.05
    assert [name for name, _ in told] == [A, B, C, A, B, C]
    times = [at for _, at in told]
    assert times[0] >= QUIET_S
    assert all(later - at >= PERIOD_S for at, later in itertools.pairwise(times))


def test_only_a_probe_that_was_answered_is_followed_by_another():
    probing, period_s = Probing(), max(GIVE_UP_S, PERIOD_S)
    assert probing.next([Seen(A, 0.0, None)], False, 100.0) == A
    assert probing.next([Seen(A, 0.0, None)], False, 100.0 + period_s) is None
    # What is measured later is the probe's.
    assert probing.next([Seen(A, 0.0, 100.2)], False, 100.0 + PERIOD_S - 0.1) is None
    assert probing.next([Seen(A, 0.0, 100.2)], False, 100.0 + period_s) == A
    # Measured again or not, two are enough.
    after_s = 100.0 + 3 * period_s
    assert probing.next([Seen(A, 0.0, 100.2)], False, after_s) is None
    assert probing.next([Seen(A, 0.0, 110.2)], False, after_s) is None
    # On its next link it is asked twice again.
    assert probing.next([Seen(A, after_s - 5.0, None)], False, after_s) == A
    assert probing.next([Seen(A, after_s - 5.0, after_s + 1)], False, after_s + period_s) == A


def test_a_link_that_real_traffic_has_measured_is_left_alone():
    probing = Probing()
    assert probing.next([Seen(A, 0.0, 50.0)], False, 100.0) is None
    assert probing.next([Seen(A, 0.0, 50.0)], False, 50.0 + STALE_S) == A


def test_nobody_is_probed_while_a_request_runs_or_right_after():
    probing, seen = Probing(), [Seen(A, 0.0, None)]
    assert probing.next(seen, True, 100.0) is None
    assert probing.next(seen, False, 100.0 + QUIET_S - 0.01) is None
    assert probing.next(seen, False, 100.0 + QUIET_S) == A


def test_the_next_one_waits_until_the_first_has_answered_or_was_given_up():
    probing, both = Probing(), [Seen(A, 0.0, None), Seen(B, 0.0, None)]
    assert probing.next(both, False, 100.0) == A
    assert probing.current == A
    assert probing.next(both, False, 100.0 + GIVE_UP_S - 0.1) is None
    assert probing.next(both, False, 100.0 + max(GIVE_UP_S, PERIOD_S)) == B
    # A did not answer: it is not asked again and again, but its next link is.
    later_s = 100.0 + 2 * max(GIVE_UP_S, PERIOD_S)
    assert probing.next([Seen(A, 0.0, None)], False, later_s) is None
    assert probing.next([Seen(A, later_s - 5.0, None)], False, later_s) == A


@given(
    st.lists(
        st.tuples(st.floats(0.0, 8.0), st.booleans(), st.sets(st.sampled_from([A, B, C])),
                  st.booleans()), max_size=60,
    )
)  # fmt: skip
def test_whatever_happens_probes_are_rare_and_never_meet(steps):
    probing, now_s, open_probe = Probing(), 0.0, None
    measured: dict[AgentName, float | None] = dict.fromkeys((A, B, C))
    busy_s = told_s = float("-inf")
    for step_s, busy, here, answers in steps:
        now_s += step_s
        if open_probe and (answers or now_s - told_s >= GIVE_UP_S):
            if answers and now_s > told_s:
                measured[open_probe] = now_s
            open_probe = None if now_s > told_s else open_probe
        busy_s = now_s if busy else busy_s
        chosen = probing.next([Seen(n, 0.0, measured[n]) for n in sorted(here)], busy, now_s)
        if chosen is not None:
            assert chosen in here
            assert open_probe is None
            assert now_s - busy_s >= QUIET_S
            assert now_s - told_s >= PERIOD_S
            open_probe, told_s = chosen, now_s
