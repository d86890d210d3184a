"""One cluster, many texts: one after the other, given up midway, side by side, after a loss."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ids import AgentName
from coordinator.cluster import Cluster
from kernels.errors import AgentLostError, HeadwiseError, PromptError
from tests.system.processes import wait_until

CONTEXT_TOKENS = 512
N_CONTEXTS = 4
# The tokens of one whole context, and as much more as the last pages of four may leave unused.
N_PAGES = (CONTEXT_TOKENS + 63 * N_CONTEXTS) // 64


@pytest.fixture(scope="module")
def cluster(endless: Path) -> Iterator[Cluster]:
    with Cluster(endless, local=3, exact=True, context_tokens=CONTEXT_TOKENS) as cluster:
        yield cluster


def write(cluster: Cluster, prompt: list[int], n_tokens: int = 12) -> list[int | None]:
    return [token.id for token in cluster.generate(prompt_ids=prompt, max_tokens=n_tokens)]


def check_nothing_is_held(cluster: Cluster) -> None:
    """Four texts that reserve all pages of the pool between them find room if nothing leaked."""
    n_tokens = [CONTEXT_TOKENS, 64, 64, 64]
    assert sum(n // 64 for n in n_tokens) == N_PAGES
    with contextlib.ExitStack() as texts:
        for n in n_tokens:
            text = cluster.generate(prompt_ids=[5], max_tokens=n - 1)
            texts.enter_context(contextlib.closing(text))
            next(text)


def test_texts_one_after_the_other(cluster: Cluster) -> None:
    first, second = write(cluster, [5, 6, 7]), write(cluster, [9, 8])
    assert len(first) == len(second) == 12
    assert first != second
    assert [write(cluster, [5, 6, 7]), write(cluster, [9, 8])] == [first, second]


def test_texts_given_up_midway_free_their_contexts(cluster: Cluster) -> None:
    wanted = write(cluster, [5, 6, 7])
    for n_taken in range(2 * N_CONTEXTS):
        # Long enough that the pages of two such texts do not fit at once.
        given_up = cluster.generate(prompt_ids=[9] * 70, max_tokens=CONTEXT_TOKENS)
        for _ in range(n_taken):
            next(given_up)
        given_up.close()
        given_up.close()
        assert given_up.result().finish_reason == "cancelled"
        assert len(given_up.result().token_ids) == n_taken
        assert next(given_up, None) is None
    assert write(cluster, [5, 6, 7]) == wanted
    check_nothing_is_held(cluster)


def test_many_short_texts_leak_no_pages(cluster: Cluster) -> None:
    for i in range(60):
        assert len(write(cluster, [5 + i] * (1 + i), n_tokens=2)) == 2
    check_nothing_is_held(cluster)


def test_agents_report_the_pages_that_are_free(cluster: Cluster) -> None:
    def report(n_pages: int) -> bool:
        agents = cluster.control._membership.alive()
        return all(a.heartbeat and a.heartbeat.kv_free_pages == n_pages for a in agents)

    with contextlib.closing(cluster.generate(prompt_ids=[5] * 130, max_tokens=20)) as text:
        next(text)
        assert wait_until(lambda: report(N_PAGES - 3), within_s=5.0)
    assert wait_until(lambda: report(N_PAGES), within_s=5.0)


def test_texts_side_by_side_do_not_disturb_each_other(cluster: Cluster) -> None:
    prompts = [[5, 6, 7], [9, 8], [11], [5, 6]]
    alone = [write(cluster, prompt) for prompt in prompts]
    texts = [cluster.generate(prompt_ids=prompt, max_tokens=12) for prompt in prompts]
    side_by_side = [[token.id for token in row] for row in zip(*texts, strict=True)]
    assert [list(column) for column in zip(*side_by_side, strict=True)] == alone


def test_a_text_that_finds_no_room_says_so_and_disturbs_nobody(cluster: Cluster) -> None:
    wanted = write(cluster, [5, 6, 7], 60)
    most = cluster.generate(prompt_ids=[5, 6, 7], max_tokens=CONTEXT_TOKENS)
    with contextlib.closing(most) as text:
        found = [next(text).id for _ in range(30)]
        with pytest.raises(HeadwiseError, match="needs 8 KV pages for 512 tokens"):
            next(cluster.generate(prompt_ids=[9, 8], max_tokens=CONTEXT_TOKENS))
        found += [next(text).id for _ in range(30)]
    assert found == wanted
    check_nothing_is_held(cluster)


def test_prompts_that_cannot_be_served_disturb_nobody(cluster: Cluster) -> None:
    wanted = write(cluster, [5, 6, 7])
    for prompt in ([], [600], [-1], [5] * CONTEXT_TOKENS):
        with pytest.raises(PromptError):
            write(cluster, prompt)
    with pytest.raises(PromptError, match="has no tokenizer"):
        cluster.generate("Once")
    assert write(cluster, [5, 6, 7]) == wanted


def test_the_context_ends_the_text(cluster: Cluster) -> None:
    text = cluster.generate(prompt_ids=[5] * (CONTEXT_TOKENS - 3), max_tokens=100)
    assert len(list(text)) == 3
    assert text.result().finish_reason == "length"


def test_after_a_loss_the_others_write_the_same_text(endless: Path) -> None:
    with Cluster(endless, local=3, exact=True) as cluster:
        wanted = write(cluster, [5, 6, 7])
        text = cluster.generate(prompt_ids=[5, 6, 7], max_tokens=len(wanted))
        other = cluster.generate(prompt_ids=[5, 6, 7], max_tokens=len(wanted))
        before = [next(text).id, next(other).id, next(other).id]
        os.kill(cluster.local_pids[AgentName("local-2")], signal.SIGKILL)
        assert before[:1] + [token.id for token in text] == wanted
        assert before[1:] + [token.id for token in other] == wanted
        assert cluster.agent_names() == ["local-1", "local-3"]
        assert write(cluster, [5, 6, 7]) == wanted
        # One that is told to go says BYE: nobody has to find out.
        os.kill(cluster.local_pids[AgentName("local-3")], signal.SIGTERM)
        assert wait_until(lambda: cluster.agent_names() == ["local-1"])
        assert cluster.control.lost_reason(AgentName("local-3")) == "it left: SIGTERM"
        text = cluster.generate(prompt_ids=[5, 6, 7], max_tokens=1000)
        next(text)
        os.kill(cluster.local_pids[AgentName("local-1")], signal.SIGKILL)
        with pytest.raises(AgentLostError, match="agent 'local-1' was lost"):
            list(text)
        assert text.result().finish_reason == "cancelled"


def test_an_agent_of_this_machine_may_be_silent_for_a_while(endless: Path) -> None:
    """It waits for a processor; were it dead, or stopped for longer, the coordinator would know."""
    with Cluster(endless, local=2, exact=True) as cluster:
        wanted = write(cluster, [5, 6, 7])
        text = cluster.generate(prompt_ids=[5, 6, 7], max_tokens=len(wanted))
        pid = cluster.local_pids[AgentName("local-2")]
        found = [next(text).id]
        os.kill(pid, signal.SIGSTOP)
        # Longer than any agent elsewhere may owe an answer.
        waking = threading.Timer(2.5, os.kill, (pid, signal.SIGCONT))
        waking.start()
        found += [token.id for token in text]
        waking.join()
        assert found == wanted
        assert cluster.agent_names() == ["local-1", "local-2"]
        assert not cluster.control.losses()
