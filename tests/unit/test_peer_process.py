"""A peer's process: what is sent to it, and what becomes of one that is missing or fails."""

import json
import sys
from pathlib import Path

import pytest

from kernels.errors import HeadwiseError, InputError
from tests.unit.tiny_checkpoint import TINY_CONFIG
from tools.bench_rows import Case
from tools.peer_child import Task
from tools.peer_process import PEERS, model_bytes, shape_of, start_peer
from tools.peer_rows import PeerSetting
from weights.families import read_config

CASE = Case("tg", 16, "q8", 256, 4)
CONFIG = read_config(TINY_CONFIG)
TASK = Task(shape_of(CONFIG), "q8", 300, False, "/tmp", 2)


def fake(tmp_path: Path, *answers: str, after: str = "") -> str:
    """Return an interpreter that gives these answers, one to each line, whatever it shall run."""
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nseen = open({str(tmp_path / 'seen')!r}, 'w')\n"
        f"seen.write(' '.join(sys.argv[1:]) + '\\n')\nfor answer in {answers!r}:\n"
        f"    seen.write(sys.stdin.readline())\n    seen.flush()\n"
        f"    print(answer, flush=True)\n{after}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_a_peer_is_told_its_model_and_each_repeat(tmp_path: Path) -> None:
    ready = '{"settings": ["a", "b"], "about": {"version": "1"}}'
    with start_peer("llama.cpp", fake(tmp_path, ready, '{"seconds": 2.5}'), TASK) as peer:
        assert peer.settings == (PeerSetting("llama.cpp", "a"), PeerSetting("llama.cpp", "b"))
        assert peer.about == {"version": "1"}
        assert peer.measure_s("b", CASE) == 2.5
    words, model, request = (tmp_path / "seen").read_text().splitlines()
    assert words == f"-m {PEERS['llama.cpp'][0]}"
    task = json.loads(model)
    assert task["shape"]["hidden_size"] == CONFIG.hidden_size
    assert (task["dtype"], task["context_tokens"], task["exact"]) == ("q8", 300, False)
    wanted = {"setting": "b", "phase": "tg", "n_tokens": 16, "depth": 256, "threads": 4}
    assert json.loads(request) == wanted


def test_missing_packages_are_named_with_the_command_that_adds_them(tmp_path: Path) -> None:
    python = fake(tmp_path, '{"missing": "llama_cpp"}')
    with (
        pytest.raises(InputError, match=r"'llama_cpp' in .* pip install --group peers"),
        start_peer("llama.cpp", python, TASK),
    ):
        pass


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot start '.*/none' for torch: .* --peer-python"),
        start_peer("torch", str(tmp_path / "none"), TASK),
    ):
        pass


@pytest.mark.parametrize(
    ("answers", "after", "text"),
    [
        (['{"error": "no such model"}'], "", "llama.cpp failed: no such model"),
        ([], "sys.exit('last words')", "the process of llama.cpp ended: last words"),
        (["hello"], "", "llama.cpp answered 'hello"),
    ],
)
def test_failures_are_told(tmp_path: Path, answers: list[str], after: str, text: str) -> None:
    with (
        pytest.raises(HeadwiseError, match=text),
        start_peer("llama.cpp", fake(tmp_path, *answers, after=after), TASK),
    ):
        pass


def test_a_peer_that_dies_later_is_no_mystery(tmp_path: Path) -> None:
    python = fake(tmp_path, '{"settings": ["a"]}', after="sys.exit('killed by an elephant')")
    with (
        start_peer("llama.cpp", python, TASK) as peer,
        pytest.raises(HeadwiseError, match="killed by an elephant"),
    ):
        peer.measure_s("a", CASE)


def test_peers_of_larger_formats_and_contexts_take_more() -> None:
    sizes = [model_bytes(CONFIG, dtype, 100) for dtype in ("q4", "q8", "f16", "f32")]
    assert sizes == sorted(set(sizes))
    assert model_bytes(CONFIG, "q4", 1000) > sizes[0]
