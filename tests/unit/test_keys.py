"""Key store, join files and the `keys` verb: permissions, rotation, what is never shown."""

import errno
import os
import stat
from pathlib import Path

import pytest
import zmq

from agent.curve import KeyPair, fingerprint, is_key_pair, new_key_pair
from agent.join_file import JoinInfo, decode_join_info, encode_join_info, read_join_file
from agent.main import add_arguments as add_agent_arguments
from agent.main import run as run_agent
from agent.private_files import write_new
from agent.shell import run_verb
from coordinator.keys import KeyStore, find_store, known_names
from coordinator.keys_verb import add_arguments, run
from kernels.errors import InputError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def keys(*words: str | Path) -> int:
    return run_verb("headwise keys", "x", (add_arguments, run), [str(w) for w in words])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_that_cannot_be_read_for_a_while_revoke_nobody(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (keys("init"), keys("add", "pi-1"), keys("add", "pi-2")) == (0, 0, 0)
    store = find_store(None)
    assert store is not None
    assert store.changed()
    real = os.open

    def flooded(path: Path, flags: int, *more: int) -> int:
        if str(path).endswith("pi-1.pub"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", flooded)
        # Not a list without it, and looked at again although nothing has changed since.
        with pytest.raises(InputError, match="Too many open files"):
            store.agents([])
    assert store.changed()
    assert [agent.name for agent in store.agents([])] == ["pi-1", "pi-2"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_what_is_written(here: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert (keys("init"), keys("add", "pi-1")) == (0, 0)
    finally:
        os.umask(before)
    store = here / "config" / "headwise" / "keys"
    files = [store / "coordinator.key", store / "agents" / "pi-1.pub", here / "pi-1.join"]
    assert [mode(path) for path in files] == 3 * [0o600]
    assert [mode(path) for path in (store, store / "agents")] == 2 * [0o700]
    assert sorted(p.name for p in store.rglob("*")) == ["agents", "coordinator.key", "pi-1.pub"]
    assert known_names() == ["pi-1"]


def test_join_files_work_and_secrets_are_never_shown(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("init") == 0
    assert keys("add", "pi-1", "--address", "tcp://[fd00::1]:7080") == 0
    info = read_join_file(here / "pi-1.join")
    store = find_store(None)
    assert store is not None
    assert (info.name, info.coordinator) == ("pi-1", "tcp://[fd00::1]:7080")
    assert info.coordinator_key == store.pair().public
    assert [a.public for a in store.agents()] == [info.public]
    assert keys("list") == 0
    shown = "".join(capsys.readouterr()) + repr(info) + repr(info.curve) + repr(store.pair())
    assert fingerprint(info.public) in shown
    assert info.secret not in shown
    assert store.pair().secret not in shown


def test_rotation_ends_the_old_key_and_keeps_the_address(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys("init")
    keys("add", "pi-1", "--address", "tcp://10.0.0.1:7070")
    old = read_join_file(here / "pi-1.join")
    assert keys("add", "pi-1", "-o", "x.join") == 1
    assert keys("add", "--rotate", "pi-1") == 1
    assert "pi-1.join is there already and is not overwritten" in capsys.readouterr().err
    assert keys("add", "--rotate", "pi-2") == 1
    assert "no agent 'pi-2' to rotate; here are: pi-1" in capsys.readouterr().err
    assert keys("add", "--rotate", "pi-1", "-o", "new.join") == 0
    new = read_join_file(here / "new.join")
    assert new.coordinator == "tcp://10.0.0.1:7070"
    store = KeyStore(here / "config" / "headwise" / "keys")
    assert [a.public for a in store.agents()] == [new.public]
    assert new.public != old.public
    assert not (here / "x.join").exists()


def test_a_running_coordinator_can_tell_that_the_list_changed(here: Path) -> None:
    keys("init")
    store = find_store(None)
    assert store is not None
    assert (store.changed(), store.changed()) == (True, False)
    for words in (["add", "a"], ["add", "b"], ["revoke", "a"]):
        keys(*words)
        assert (store.changed(), store.changed()) == (True, False)
    keys("add", "--rotate", "b", "-o", "b2.join")
    assert (store.changed(), store.changed()) == (True, False)
    assert known_names() == ["b"]


def test_what_cannot_be_done_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: str | Path) -> str:
        assert keys(*words) == 1
        return capsys.readouterr().err

    assert known_names() == []
    assert find_store(None) is None
    with pytest.raises(InputError, match="headwise keys init --keys"):
        find_store(here / "nowhere")
    assert "make them with: headwise keys init" in error("add", "pi-1")
    assert "make them with: headwise keys init" in error("list")
    keys("init")
    assert "holds keys already" in error("init")
    assert "is no agent name" in error("add", "../pi")
    assert "is no agent name" in error("revoke", "../coordinator")
    assert "no agent 'pi-9' to revoke; here are: none" in error("revoke", "pi-9")
    assert "is no coordinator address" in error("add", "pi-1", "--address", "pi:7070")
    assert "can be no host name" in error("add", "pi-1", "--address", "tcp://pi..local:7070")
    assert not (here / "pi-1.join").exists()
    assert "cannot write" in error("add", "pi-1", "-o", here / "no" / "x.join")
    assert known_names() == []


def test_files_that_others_may_reach_are_refused(here: Path) -> None:
    keys("init")
    keys("add", "pi-1")
    store = here / "config" / "headwise" / "keys"
    for path, wide, right in (
        (here / "pi-1.join", 0o640, 0o600),
        (store / "coordinator.key", 0o604, 0o600),
        (store / "agents" / "pi-1.pub", 0o620, 0o600),
        (store, 0o750, 0o700),
        (store / "agents", 0o701, 0o700),
    ):
        path.chmod(wide)
        with pytest.raises(InputError, match=f"run: chmod {right:o} {path}"):
            read_join_file(path) if path.suffix == ".join" else (
                KeyStore(store).pair(), KeyStore(store).agents(),
            )  # fmt: skip
        path.chmod(right)
    assert read_join_file(here / "pi-1.join").name == "pi-1"


def test_another_users_file_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys("init")
    keys("add", "pi-1")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(InputError, match=f"belongs to user {user}"):
        read_join_file(here / "pi-1.join")
    with pytest.raises(InputError, match=f"belongs to user {user}"):
        KeyStore(here / "config" / "headwise" / "keys").pair()


def test_damaged_files_are_explained_without_their_content(here: Path) -> None:
    keys("init")
    keys("add", "pi-1")
    good = read_join_file(here / "pi-1.join")
    other = new_key_pair()
    damaged = {
        "is no join file": encode_join_info(good)[:-20],
        "secret in": encode_join_info(good).replace(good.secret.encode(), b"short secret"),
        "do not belong together": encode_join_info(
            JoinInfo(good.name, good.coordinator, good.coordinator_key, good.public, other.secret)
        ),
        "version 9": encode_join_info(good).replace(b'"version": 1', b'"version": 9'),
        "more than 4096 bytes": b" " * 5000,
    }
    for i, (text, data) in enumerate(damaged.items()):
        path = here / f"{i}.join"
        write_new(path, data)
        with pytest.raises(InputError, match=text) as caught:
            read_join_file(path)
        for secret in (good.secret, other.secret, "short secret"):
            assert secret not in str(caught.value)
    with pytest.raises(InputError, match="is no regular file"):
        read_join_file(Path("/dev/null"))
    with pytest.raises(InputError, match="cannot be read"):
        read_join_file(here / "missing.join")
    store = KeyStore(here / "config" / "headwise" / "keys")
    keys("add", "pi-2")
    entry = store.directory / "agents" / "pi-1.pub"
    entry.write_text("{")
    problems: list[str] = []
    # One damaged entry must not hide that others were added or revoked.
    assert [a.name for a in store.agents(problems)] == ["pi-2"]
    assert "pi-1.pub is damaged" in problems[0]
    with pytest.raises(InputError, match="is damaged"):
        store.agents()
    store.revoke("pi-1")
    assert [a.name for a in store.agents()] == ["pi-2"]


def test_random_text_is_no_join_file() -> None:
    for data in (b"", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"name": 3}'):
        with pytest.raises(InputError, match="is no join file"):
            decode_join_info(data, "it")


def test_a_libzmq_without_curve_is_explained(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zmq, "has", lambda feature: feature != "curve")
    assert keys("init") == 1
    assert "built without CURVE, so links cannot be encrypted" in capsys.readouterr().err
    assert known_names() == []


def test_pairs_are_told_from_strangers() -> None:
    one, two = new_key_pair(), new_key_pair()
    assert is_key_pair(one)
    assert not is_key_pair(KeyPair(one.public, two.secret))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--coordinator", "tcp://192.168.1.10:7070"], "links to it need keys"),
        (["--coordinator", "tcp://pi.local:7070"], "start this agent with --join"),
        (["--join", "pi-1.join", "--name", "pi-2"], "the join file is that of agent 'pi-1'"),
        (["--join", "nowhere.join"], "nowhere.join cannot be read"),
        (["--join", "pi-1.join", "--coordinator", "pi"], "is no coordinator address"),
        (["--join", "pi-1.join", "--coordinator", "tcp://pi..local:1"], "can be no host name"),
        # No number that this process may have in use: the file behind it would be closed.
        (["--join-fd", "999999999"], "--join-fd 999999999 cannot be read"),
    ],
)
def test_agents_beyond_loopback_need_keys(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    keys("init")
    keys("add", "pi-1")
    assert run_verb("headwise agent", "x", (add_agent_arguments, run_agent), words) == 1
    assert text in capsys.readouterr().err
