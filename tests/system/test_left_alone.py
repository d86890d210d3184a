"""Texts that nobody reads to their end, and plans that change under them."""

import gc
from collections.abc import Iterator

import pytest

from coordinator.cluster import Cluster
from coordinator.local import local_names
from kernels.errors import RemoteError


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(local=2) as cluster:
        yield cluster


def test_break_frees_the_context_at_once(cluster: Cluster) -> None:
    gc.disable()  # no collector may be needed
    try:
        for _ in range(6):
            for token in cluster.generate("Once upon a time", max_tokens=500):
                assert token.id is not None
                break
    finally:
        gc.enable()


def test_a_new_plan_ends_running_texts_and_serves_new_ones(cluster: Cluster) -> None:
    running = cluster.generate("Tom had a red kite.", max_tokens=100)
    first = next(running)
    engine = cluster.engine
    cluster.install(cluster.make_plan(local_names(1)))
    assert list(running) == []
    assert running.result().finish_reason == "cancelled"
    assert running.result().token_ids == [first.id]
    with pytest.raises(RemoteError, match="the plan was replaced"):
        engine.control_kv([])
    assert len(list(cluster.generate("Tom had a red kite.", max_tokens=5))) == 5


def test_a_text_may_outlive_its_cluster() -> None:
    with Cluster(local=1) as cluster:
        text = cluster.generate("One day,", max_tokens=20)
        next(text)
    assert list(text) == []
