"""Who gives way when the cache grows too big, and what `headwise cache` shows and does."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from agent.cache import CacheEntry
from agent.cache_room import held_models, make_room, remove_model
from agent.cache_verb import add_arguments, run
from agent.shell import run_verb
from tests.protocol.agent_harness import make_model
from tests.protocol.store_harness import Pulls, all_atoms, cached, check_atoms, ensure


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("room") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def atoms(model):
    return all_atoms(model.manifest)


def other_model(root, digit, used_s, n_bytes=100_000):
    """Put another model into the cache; returns its entry, which holds it."""
    entry = CacheEntry(root, digit * 32)
    (entry.directory / "weights.bin").write_bytes(os.urandom(n_bytes))
    os.utime(entry.directory / "users", (used_s, used_s))
    return entry


def names(root):
    return {held.model_id[0] for held in held_models(root)}


def test_the_models_used_longest_ago_give_way(tmp_path):
    for digit, used_s in [("a", 30), ("b", 10), ("c", 20), ("d", 40)]:
        other_model(tmp_path, digit, used_s).close()
    assert [held.model_id[0] for held in held_models(tmp_path)] == ["d", "a", "c", "b"]
    make_room(tmp_path, "d" * 32, 0, 10_000_000)
    assert names(tmp_path) == {"a", "b", "c", "d"}
    make_room(tmp_path, "d" * 32, 100_000, 350_000)
    assert names(tmp_path) == {"a", "d"}


def test_models_in_use_and_the_one_that_grows_are_spared(tmp_path):
    entries = {digit: other_model(tmp_path, digit, used_s) for used_s, digit in enumerate("abc")}
    entries["b"].close()
    entries["c"].close()
    with pytest.raises(OSError, match="do not fit the cache limit") as caught:
        make_room(tmp_path, "c" * 32, 1, 1000)
    assert caught.value.errno == errno.EDQUOT
    assert names(tmp_path) == {"a", "c"}
    assert not remove_model(entries["a"].directory)
    assert [held.in_use for held in held_models(tmp_path)] == [False, True]


def test_a_model_held_by_another_process_is_spared_until_it_dies(tmp_path):
    other_model(tmp_path, "a", 1).close()
    program = (
        "import sys; from pathlib import Path; from agent.cache import CacheEntry\n"
        f"entry = CacheEntry(Path({str(tmp_path)!r}), {'a' * 32!r})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            assert not remove_model(tmp_path / "models" / ("a" * 32))
        finally:
            process.kill()
    assert remove_model(tmp_path / "models" / ("a" * 32))
    assert os.listdir(tmp_path / "models") == []


def test_a_store_makes_room_before_it_pulls(model, atoms, tmp_path):
    n_bytes = sum(a.n_bytes for a in atoms)
    other_model(tmp_path, "a", 1, n_bytes).close()
    store = cached(model, tmp_path, limit_bytes=n_bytes + 100_000)
    ensure(store, atoms, Pulls(model))
    assert not store.in_memory
    check_atoms(store, model, atoms)
    assert [held.model_id for held in held_models(tmp_path)] == [model.model_id]


def test_a_model_beyond_the_limit_runs_from_memory(model, atoms, tmp_path, caplog):
    store = cached(model, tmp_path, limit_bytes=1000)
    ensure(store, atoms, Pulls(model))
    assert store.in_memory
    assert "do not fit the cache limit of 1000" in caplog.text
    check_atoms(store, model, atoms)
    # It holds the model no more.
    assert not any(held.in_use for held in held_models(tmp_path))


def test_what_dead_processes_left_is_removed_and_what_live_ones_write_is_not(
    model, atoms, tmp_path
):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    dead, entry = process.pid, CacheEntry(tmp_path, model.model_id)
    (entry.directory / f".manifest.json.{dead}").write_bytes(b"half")
    (entry.directory / f".journal.{dead}").write_bytes(b"half")
    (entry.directory / f".journal.{os.getppid()}").write_bytes(b"not yet whole")
    shutil.copytree(entry.directory, tmp_path / "models" / f".{'a' * 32}.{dead}")
    ensure(cached(model, tmp_path), atoms[:1], Pulls(model))
    held_models(tmp_path)
    assert os.listdir(tmp_path / "models") == [model.model_id]
    assert [n for n in os.listdir(entry.directory) if n.startswith(".")] == [
        f".journal.{os.getppid()}"
    ]


def cache(tmp_path, *words):
    verb = (add_arguments, run)
    return run_verb("headwise cache", "Text.", verb, ["--cache-dir", str(tmp_path), *words])


@pytest.fixture
def filled(model, atoms, tmp_path):
    """A cache with half a model that nobody uses."""
    entry = CacheEntry(tmp_path, model.model_id)
    entry.write_manifest(model.manifest.encode())
    entry.close()
    store = cached(model, tmp_path)
    ensure(store, atoms[:6], Pulls(model))
    store.close()
    return tmp_path


def test_ls(model, atoms, filled, capsys):
    assert cache(filled, "ls") == 0
    text = capsys.readouterr().out
    assert model.model_id[:12] in text
    assert f"6 of {len(atoms)}" in text
    assert cache(filled, "ls", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["n_atoms"], row["in_use"]) == (model.model_id, 6, False)
    assert row["disk_bytes"] >= sum(a.n_bytes for a in atoms[:6])
    assert cache(filled / "nowhere", "ls") == 0
    assert "no models in" in capsys.readouterr().out


def test_rm(model, filled, capsys):
    entry = CacheEntry(filled, model.model_id)
    assert cache(filled, "rm", model.model_id[:5]) == 1
    assert "is in use by an agent" in capsys.readouterr().err
    entry.close()
    assert cache(filled, "rm", "another") == 1
    assert f"{model.model_id[:12]} ({model.manifest.name})" in capsys.readouterr().err
    assert cache(filled, "rm", model.manifest.name) == 0
    assert "free again" in capsys.readouterr().out
    assert held_models(filled) == []


def test_rm_wants_to_know_which(tmp_path, capsys):
    for i, digit in enumerate("ab"):
        other_model(tmp_path, digit, 1).directory.rename(tmp_path / "models" / f"c{i}{digit * 30}")
    assert cache(tmp_path, "rm", "c") == 1
    assert "stands for 2 models" in capsys.readouterr().err
    assert cache(tmp_path, "rm", "") == 1
    assert "is not in the cache" in capsys.readouterr().err
    assert len(held_models(tmp_path)) == 2


def test_verify_drops_damaged_atoms_and_keeps_the_others(model, atoms, filled, capsys):
    assert cache(filled, "verify") == 0
    assert "6 atoms are sound\n" in capsys.readouterr().out
    path = filled / "models" / model.model_id / "weights.bin"
    with path.open("r+b") as file:
        file.seek(atoms[2].offset_bytes + 1)
        file.write(b"\xff\xfe\xfd")
    assert cache(filled, "verify", model.model_id) == 0
    assert "5 atoms are sound, 1 damaged ones dropped" in capsys.readouterr().out
    pulls, again = Pulls(model), cached(model, filled)
    ensure(again, atoms[:6], pulls)
    assert pulls.names == [atoms[2].hash]
    check_atoms(again, model, atoms[:6])


def test_verify_survives_a_file_of_another_size(model, filled, capsys):
    (filled / "models" / model.model_id / "weights.bin").write_bytes(b"short")
    assert cache(filled, "verify") == 0
    assert "0 atoms are sound, 6 damaged" in capsys.readouterr().out
