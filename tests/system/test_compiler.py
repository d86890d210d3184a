"""The process that compiles for an agent: when it fails, is not wanted, or is cut off."""

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import agent.compiler
from agent.compile_server import Answer, Request
from agent.compiler import IMAGES_VARIABLE, compiling, open_images
from kernels.entries import count_up
from kernels.entry import images_in_use, use_images
from kernels.errors import ResourceError
from kernels.image import Images
from tests.system.processes import HEADWISE, ROOT, Command

SERVER = [sys.executable, "-m", "agent.compile_server"]
STORY = ["run", "-p", "Once upon a time", "-n", "40", "--exact", "--local", "2"]


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    images = Images(tmp_path)
    use_images(images)
    count_up._found.clear()
    count_up._missing.clear()
    yield images
    use_images(None)
    count_up._found.clear()
    count_up._missing.clear()


def counted() -> int:
    words = np.zeros(64, np.int64)
    count_up(words, 0)
    return int(words[0])


@pytest.mark.parametrize("how", ["1", "0"])
def test_images_can_be_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGES_VARIABLE, how)
    assert (open_images() is None) == (how == "0")


def test_another_target_has_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    here = open_images()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    other = open_images()
    assert here is not None
    assert other is not None
    assert here.directory != other.directory


def test_a_child_compiles_what_is_missing_and_ends(
    images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    with compiling():
        assert counted() == 1
    assert caplog.messages == []
    (path,) = images.directory.iterdir()
    assert path.suffix == ".image"
    assert path.stat().st_mode & 0o077 == 0
    assert images.compile is None
    # Found again, without a child.
    count_up._found.clear()
    assert counted() == 1


@pytest.mark.parametrize("trouble", ["no program", "ends at once", "speaks nonsense"])
def test_an_agent_goes_on_without_a_child(
    images: Images, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    popen = subprocess.Popen

    def start(words: list[str], **options: Any) -> Any:
        if trouble == "no program":
            raise OSError(errno.ENOEXEC, "Exec format error")
        text = "print('?', flush=True); input()" if trouble == "speaks nonsense" else "pass"
        return popen([sys.executable, "-c", text], **options)

    monkeypatch.setattr(agent.compiler.subprocess, "Popen", start)
    with compiling():
        assert counted() == 1
        assert counted() == 1
    assert images_in_use() is None
    assert len([m for m in caplog.messages if "the compiling process cannot be used" in m]) == 1
    assert list(images.directory.iterdir()) == []


@pytest.mark.parametrize("text", ["", "half an answer"])
def test_a_child_that_never_answers_is_an_error(
    images: Images, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, children = subprocess.Popen, []

    def start(_: list[str], **options: Any) -> Any:
        # Nor does it end with its stdin.
        program = f"import signal; print({text!r}, end='', flush=True); signal.pause()"
        children.append(popen([sys.executable, "-c", program], **options))
        return children[-1]

    monkeypatch.setattr(agent.compiler.subprocess, "Popen", start)
    monkeypatch.setattr(agent.compiler, "COMPILE_TIMEOUT_S", 0.2)
    with (
        compiling(),
        pytest.raises(ResourceError, match=r"not answered for 0\.2 s about .*count_up"),
    ):
        count_up(np.zeros(64, np.int64), 0)
    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert images_in_use() is images


def test_sources_that_were_replaced_are_not_compiled(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.compiler, "cache_key", lambda: "another version")
    with compiling(), pytest.raises(ResourceError, match="files have changed since"):
        count_up(np.zeros(64, np.int64), 0)
    assert list(images.directory.iterdir()) == []


def test_a_child_that_does_not_end_is_ended(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen, children = subprocess.Popen, []

    def start(_: list[str], **options: Any) -> Any:
        answer = msgspec.json.encode(Answer("not today")).decode()
        program = f"import signal; input(); print({answer!r}, flush=True); signal.pause()"
        children.append(popen([sys.executable, "-c", program], **options))
        return children[-1]

    monkeypatch.setattr(agent.compiler.subprocess, "Popen", start)
    monkeypatch.setattr(agent.compiler, "END_TIMEOUT_S", 0.2)
    with compiling():
        assert counted() == 1
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_a_kernel_that_cannot_be_compiled_is_told(tmp_path: Path) -> None:
    bad = Request("kernels.team", "no_such_kernel", "i", str(tmp_path / "image"))
    done = subprocess.run(
        SERVER, cwd=ROOT, input=msgspec.json.encode(bad) + b"\n", capture_output=True, check=False
    )
    # Its stdin has ended, perhaps before it could answer.
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        assert "no_such_kernel" in msgspec.json.decode(line, type=Answer).error
    assert list(tmp_path.iterdir()) == []


def test_the_child_ends_in_the_middle_when_its_agent_does(tmp_path: Path) -> None:
    # Half a second of imports and ten of compilation, never both before stdin ends.
    kinds = "i i l1w i i i i i i i i1r f1r H2w i3w l1w f1w"
    long = Request("kernels.phases", "run_stage", kinds, str(tmp_path / "image"))
    with subprocess.Popen(
        SERVER, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(msgspec.json.encode(long) + b"\n")
        server.stdin.close()
        assert server.wait(60) == 0
        assert server.stdout.read() == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_words_do_not_depend_on_who_compiles() -> None:
    texts = []
    for how in ("1", "0"):
        with Command(*STORY, program=HEADWISE, env={IMAGES_VARIABLE: how}) as run:
            assert run.wait(110) == 0, run.stderr
            texts.append(run.stdout)
    assert texts[0] == texts[1]
    assert len(texts[0].split()) > 20
