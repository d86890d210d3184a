"""Who is told that it is refused, and how often that is logged."""

from coordinator.refusals import MAX_LINKS, Refusals


def test_a_link_is_answered_once_a_second_whatever_it_sends() -> None:
    refusals = Refusals()
    answered = [i / 100 for i in range(500) if refusals.note(b"a", i / 100)[0]]
    assert answered == [0.0, 1.0, 2.0, 3.0, 4.0]
    # Others do not wait for it.
    assert refusals.note(b"b", 5.001)[0]


def test_the_log_gets_ever_fewer_lines() -> None:
    refusals = Refusals()
    logged = [refusals.n_refused for _ in range(1000) if refusals.note(b"a", 0.0)[1]]
    assert logged == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def test_as_many_links_as_somebody_makes_up_take_no_room() -> None:
    refusals = Refusals()
    for i in range(3 * MAX_LINKS):
        assert refusals.note(b"%d" % i, 0.0)[0]
    # The latest are remembered, the first forgotten.
    assert not refusals.note(b"%d" % (3 * MAX_LINKS - 1), 0.5)[0]
    assert refusals.note(b"0", 0.5)[0]
