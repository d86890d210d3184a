from hypothesis import given
from hypothesis import strategies as st

from agent.grants import MAX_GRANTS, Grants, grant_seconds


def test_only_the_token_the_objects_and_the_time_of_a_grant_are_allowed():
    grants = Grants()
    grants.grant(b"a", ["x", "y"], 10.0)
    assert grants.allows(b"a", "x", 9.9)
    assert not grants.allows(b"a", "z", 1.0)
    assert not grants.allows(b"b", "x", 1.0)
    assert not grants.allows(b"", "x", 1.0)
    assert not grants.allows(b"a", "x", 10.0)
    assert len(grants) == 0


def test_a_token_is_of_no_use_to_another_key():
    grants = Grants()
    grants.grant(b"a", ["x"], 10.0, "A")
    assert grants.allows(b"a", "x", 1.0, "A")
    assert not grants.allows(b"a", "x", 1.0, "B")
    assert not grants.allows(b"a", "x", 1.0)
    # Nor is it spoilt by the attempt.
    assert grants.allows(b"a", "x", 1.0, "A")


def test_a_later_grant_takes_the_place_of_a_former_one():
    grants = Grants()
    grants.grant(b"a", ["x"], 10.0)
    grants.grant(b"a", ["y"], 20.0)
    assert not grants.allows(b"a", "x", 1.0)
    assert grants.allows(b"a", "y", 11.0)


def test_grants_end_one_by_one_or_all():
    grants = Grants()
    for token in (b"a", b"b", b"c"):
        grants.grant(token, ["x"], 10.0)
    grants.end(b"a")
    grants.end(b"never granted")
    assert [grants.allows(t, "x", 0.0) for t in (b"a", b"b", b"c")] == [False, True, True]
    grants.end_all()
    assert not grants.allows(b"b", "x", 0.0)


def test_the_table_is_bounded_and_the_grant_that_ends_first_gives_way():
    grants = Grants()
    grants.grant(b"short", ["x"], 1.0)
    for i in range(MAX_GRANTS):
        grants.grant(str(i).encode(), ["x"], 2.0 + i)
    assert len(grants) == MAX_GRANTS
    assert not grants.allows(b"short", "x", 0.0)
    assert grants.allows(b"0", "x", 0.0)


def test_a_slow_link_has_time_for_what_it_is_granted():
    assert grant_seconds(1 << 30) > (1 << 30) / 300e3
    assert grant_seconds(0) >= 60


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["grant", "end"]), st.sampled_from([b"", b"a", b"b"]),
        st.frozensets(st.sampled_from("xyz")), st.floats(0, 10),
    )
)  # fmt: skip


@given(ACTIONS, st.floats(0, 10))
def test_nothing_is_allowed_but_what_the_last_grant_says(actions, now_s):
    grants, last = Grants(), {}
    for what, token, objects, until_s in actions:
        if what == "grant":
            grants.grant(token, objects, until_s)
            last[token] = objects, until_s
        else:
            grants.end(token)
            last.pop(token, None)
    for token in (b"", b"a", b"b"):
        objects, until_s = last.get(token, (frozenset(), 0.0))
        for name in "xyz":
            assert grants.allows(token, name, now_s) == (name in objects and now_s < until_s)
