"""Chunks that a broken pull left behind, in the cache and in memory."""

import os
import random

import pytest

from agent.cache import CacheEntry
from agent.cache_store import CacheStore
from agent.chunk_log import ChunkLog, ChunkRecord
from agent.pull import Chunk
from agent.puller import Cancelled
from tests.protocol.agent_harness import make_model
from tests.protocol.store_harness import PLENTY, Pulls, all_atoms, cached, check_atoms, ensure


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("resume") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def atoms(model):
    return all_atoms(model.manifest)


def chunks(model, atom, spans):
    blob = model.atom_bytes(atom).tobytes()
    return [(start, blob[start : start + n]) for start, n in spans]


class Half:
    """A puller that brings some chunks of the first object and is cancelled."""

    def __init__(self, model, atom, spans):
        self.chunks = chunks(model, atom, spans)

    def __call__(self, wanted, sink):
        for offset, data in self.chunks:
            sink.keep(Chunk(wanted[0], offset, data))
        raise Cancelled("the link was lost")


class Resumes:
    """A puller that only looks at what is here of the first object."""

    def __call__(self, wanted, sink):
        self.found = list(sink.resume(wanted[0]))
        raise Cancelled("seen enough")


def stores(model, tmp_path):
    memory = CacheStore(model.manifest, None, PLENTY, 1)
    return {"another process": lambda: cached(model, tmp_path), "memory": lambda: memory}


@pytest.mark.parametrize("where", ["another process", "memory"])
def test_chunks_of_an_unfinished_atom_are_found_again(model, atoms, tmp_path, where):
    store, spans = stores(model, tmp_path)[where], [(64, 100), (0, 64), (300, 50)]
    with pytest.raises(Cancelled):
        ensure(store(), atoms[:3], Half(model, atoms[0], spans))
    resumes = Resumes()
    with pytest.raises(Cancelled):
        ensure(store(), atoms[:3], resumes)
    assert resumes.found == chunks(model, atoms[0], spans)
    last = store()
    ensure(last, atoms, Pulls(model))
    check_atoms(last, model, atoms)
    assert ensure(last, atoms, Pulls(model, 0, AssertionError())) == (0, 0)


@pytest.mark.parametrize("damage", ["bytes", "record", "junk", "cut", "gone"])
def test_damaged_chunks_are_not_believed(model, atoms, tmp_path, damage):
    spans = [(0, 64), (64, 64), (128, 64)]
    with pytest.raises(Cancelled):
        ensure(cached(model, tmp_path), atoms[:1], Half(model, atoms[0], spans))
    directory = tmp_path / "models" / model.model_id
    log = directory / "chunks"
    data = bytearray(log.read_bytes())
    assert len(data) == 24 * 3
    expected = spans
    if damage == "bytes":
        with (directory / "weights.bin").open("r+b") as file:
            file.seek(atoms[0].offset_bytes + 70)
            file.write(b"\xff\xff")
        expected = [spans[0], spans[2]]
    elif damage == "record":
        data[24 + 3] ^= 1
        log.write_bytes(data)
        expected = spans[:1]
    elif damage == "cut":
        log.write_bytes(data[: 24 * 2 + 7])
        expected = spans[:2]
    elif damage == "junk":
        log.write_bytes(os.urandom(500))
        expected = []
    else:
        log.unlink()
        expected = []
    resumes = Resumes()
    with pytest.raises(Cancelled):
        ensure(cached(model, tmp_path), atoms[:1], resumes)
    assert resumes.found == chunks(model, atoms[0], expected)


def test_atoms_in_the_journal_need_no_chunks(model, atoms, tmp_path):
    store = cached(model, tmp_path)
    ensure(store, atoms[:4], Pulls(model))
    with pytest.raises(Cancelled):
        ensure(store, atoms[:5], Half(model, atoms[4], [(0, 32)]))
    log = ChunkLog(tmp_path / "models" / model.model_id / "chunks")
    assert [len(log.chunks(a.offset_bytes)) for a in atoms[:5]] == [0, 0, 0, 0, 1]
    log.close()


def test_a_log_names_what_was_noted_and_forgets_what_it_is_told_to(tmp_path):
    rng, path = random.Random(1), tmp_path / "chunks"
    log, noted = ChunkLog(path), {}
    for _ in range(200):
        record = ChunkRecord(rng.randrange(5), rng.randrange(1000), 10, rng.randrange(1 << 32))
        log.add(record)
        noted.setdefault(record.atom_offset, []).append(record)
        if rng.random() < 0.1:
            gone = rng.randrange(5)
            log.forget([gone])
            noted.pop(gone, None)
        if rng.random() < 0.1:
            log.close()
            log = ChunkLog(path)
    assert {i: log.chunks(i) for i in range(5)} == {i: noted.get(i, []) for i in range(5)}
    log.forget_all()
    log.close()
    assert path.stat().st_size == 0


def test_a_file_of_another_size_takes_its_chunks_with_it(model, atoms, tmp_path):
    with pytest.raises(Cancelled):
        ensure(cached(model, tmp_path), atoms[:1], Half(model, atoms[0], [(0, 64)]))
    entry = CacheEntry(tmp_path, model.model_id)
    (entry.directory / "weights.bin").write_bytes(b"short")
    resumes = Resumes()
    with pytest.raises(Cancelled):
        ensure(cached(model, tmp_path), atoms[:1], resumes)
    assert resumes.found == []
