"""`headwise cache`: what pulled models take on this board's disk, and whether they are sound."""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from agent.cache import CacheEntry, default_cache_root
from agent.cache_room import Held, held_models, remove_model
from agent.journal import read_journal
from kernels.errors import InputError, ModelError, ResourceError
from weights.directory import MANIFEST_NAME, WEIGHTS_NAME
from weights.manifest import MAX_MANIFEST_BYTES, AtomLocation, Manifest, content_hash

__all__ = ["add_arguments", "run"]

LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.1


class _Row(NamedTuple):
    """One line of `cache ls`."""

    model: str
    name: str
    dtype: str
    source: str
    n_atoms: int
    n_atoms_total: int
    disk_bytes: int
    used_s: float
    in_use: bool


class _Verified(NamedTuple):
    """What `cache verify` found in one model."""

    model: str
    name: str
    n_atoms: int
    n_damaged: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="the cache to look at")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|rm|verify")
    ls = actions.add_parser("ls", help="list models: size, last use, source")
    ls.add_argument("--json", action="store_true", help="print JSON")
    rm = actions.add_parser("rm", help="remove a model; agents pull it again when they need it")
    rm.add_argument("model", metavar="MODEL", help="its name or the beginning of its id")
    verify = actions.add_parser("verify", help="hash every atom again and drop damaged ones")
    verify.add_argument("model", metavar="MODEL", nargs="?", help="only this one")


def run(args: argparse.Namespace) -> int:
    """List, remove or verify, and return the exit code.

    Raises:
        HeadwiseError: no such model, or one that is in use.
    """
    root = args.cache_dir or default_cache_root()
    try:
        if args.action == "ls":
            _list(root, args.json)
        elif args.action == "rm":
            _remove(root, args.model)
        else:
            _verify_all(root, args.model)
    except OSError as e:
        raise ResourceError(f"cache {root}: {e.strerror or e}; is it yours to change?") from e
    return 0


def _list(root: Path, as_json: bool) -> None:
    rows = [_row(held) for held in held_models(root)]
    if as_json:
        print(json.dumps([row._asdict() for row in rows]))
        return
    if not rows:
        print(f"no models in {root}")
        return
    heads = ["model", "name", "dtype", "atoms", "disk", "last use", "source"]
    table = [heads, *([str(cell) for cell in _cells(row)] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    for line in table:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    print(f"{_human(sum(row.disk_bytes for row in rows))} in {root}")


def _row(held: Held) -> _Row:
    manifest = _manifest(held)
    if manifest is None:
        return _Row(held.model_id, "?", "?", "?", 0, 0, held.disk_bytes, held.used_s, held.in_use)
    present = _present(held, manifest)
    n_total = sum(len(section.hashes) for section in manifest.sections)
    return _Row(
        held.model_id, manifest.name, manifest.dtype, manifest.source, len(present), n_total,
        held.disk_bytes, held.used_s, held.in_use,
    )  # fmt: skip


def _cells(row: _Row) -> list[Any]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used_s))
    return [
        row.model[:12], row.name, row.dtype, f"{row.n_atoms} of {row.n_atoms_total}",
        _human(row.disk_bytes), "now" if row.in_use else used, row.source or "-",
    ]  # fmt: skip


def _remove(root: Path, model: str) -> None:
    held = _find(root, model)
    if not remove_model(held.directory):
        raise ResourceError(
            f"model {model!r} is in use by an agent on this board; stop that agent first"
        )
    print(f"removed {held.model_id[:12]}: {_human(held.disk_bytes)} free again")


def _verify_all(root: Path, model: str | None) -> None:
    chosen = held_models(root) if model is None else [_find(root, model)]
    for held in chosen:
        manifest = _manifest(held)
        if manifest is None:
            print(f"{held.model_id[:12]}: no manifest yet, nothing to verify")
            continue
        found = _verify(root, held, manifest)
        damaged = f", {found.n_damaged} damaged ones dropped" if found.n_damaged else ""
        print(f"{found.model[:12]} {found.name}: {found.n_atoms} atoms are sound{damaged}")
    if not chosen:
        print(f"no models in {root}")


def _verify(root: Path, held: Held, manifest: Manifest) -> _Verified:
    entry = CacheEntry(root, held.model_id)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while not entry.try_lock():
        if time.monotonic() > deadline_s:
            raise ResourceError(
                f"an agent is writing to model {manifest.name!r} in {root}; try again later"
            )
        time.sleep(LOCK_POLL_S)
    try:
        present = _present(held, manifest)
        damaged = _damaged(held.directory / WEIGHTS_NAME, manifest.weights_bytes, present)
        if damaged:
            entry.forget(damaged)
    finally:
        entry.unlock()
        entry.close()
    return _Verified(held.model_id, manifest.name, len(present) - len(damaged), len(damaged))


def _damaged(path: Path, n_bytes: int, atoms: Iterable[AtomLocation]) -> list[AtomLocation]:
    """Return the atoms whose bytes in the file do not have their hash."""
    atoms = list(atoms)
    if not path.exists() or path.stat().st_size != n_bytes:
        return atoms
    damaged = []
    # Read, not mapped: a disk that fails shall be an error, not a SIGBUS.
    with path.open("rb") as file:
        for atom in atoms:
            file.seek(atom.offset_bytes)
            if content_hash(file.read(atom.n_bytes)) != atom.hash:
                damaged.append(atom)
    return damaged


def _find(root: Path, model: str) -> Held:
    """Return the one model that is meant.

    Raises:
        InputError: there is none, or more than one.
    """
    models = held_models(root)
    # An empty word, as of a shell variable that is not set, means nothing.
    found = [held for held in models if model and held.model_id.startswith(model)]
    if not found:
        found = [held for held in models if _name(held) == model]
    if len(found) == 1:
        return found[0]
    here = ", ".join(f"{held.model_id[:12]} ({_name(held)})" for held in found or models)
    what = f"stands for {len(found)} models" if found else "is not in the cache"
    raise InputError(f"{model!r} {what}; in {root} are: {here or 'none'}")


def _manifest(held: Held) -> Manifest | None:
    """Return a model's manifest, or None if it is not here yet or damaged."""
    try:
        with (held.directory / MANIFEST_NAME).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        return Manifest.parse(data) if content_hash(data) == held.model_id else None
    except (OSError, ModelError):
        return None


def _name(held: Held) -> str:
    manifest = _manifest(held)
    return manifest.name if manifest is not None else "?"


def _present(held: Held, manifest: Manifest) -> list[AtomLocation]:
    """Return the atoms of a model that its journal names."""
    journal = read_journal(held.directory)
    atoms = (
        manifest.atom(section.kind, section.layer, i)
        for section in manifest.sections
        for i in range(len(section.hashes))
    )
    return [atom for atom in atoms if journal.get(atom.offset_bytes) == atom.hash]


def _human(n_bytes: int) -> str:
    """Return a size as people write it, such as 1.4 GiB."""
    size, units = float(n_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"
