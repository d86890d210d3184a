import pytest

from tools.bench_shares import shares


@pytest.mark.parametrize(("n_groups", "n_columns"), [(4, 176), (8, 256), (1, 1), (6, 24)])
def test_shares_hold_atoms_that_exist_and_as_many_of_either_kind(
    n_groups: int, n_columns: int
) -> None:
    whole, *parts = shares(n_groups, n_columns)
    assert whole.head_groups == tuple(range(n_groups))
    assert whole.columns == tuple(range(n_columns))
    for neighbours, scattered in zip(parts[::2], parts[1::2], strict=True):
        for one in (neighbours, scattered):
            assert set(one.head_groups) <= set(whole.head_groups)
            assert set(one.columns) <= set(whole.columns)
        assert len(neighbours.columns) == len(scattered.columns) >= 1
        assert len(neighbours.head_groups) == len(scattered.head_groups) >= 1
        assert n_columns < 6 or scattered.columns[1] > scattered.columns[0] + 1
