"""The house's walls: import directions, purity, sizes of files and functions."""

import ast
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ["kernels", "weights", "agent", "coordinator", "tools"]
IMPURE = {"zmq", "threading", "time", "psutil", "socket", "asyncio", "subprocess"}
PURE_FILES = [
    *(p for p in (ROOT / "kernels").rglob("*.py") if p.name != "pool.py"),
    *(
        ROOT / "coordinator" / f"{name}.py"
        for name in (
            "admission", "assign", "gather", "identity", "known_agent", "loading", "membership",
            "membership_events", "migration", "migration_events", "migration_orders",
            "migration_parts", "migration_text", "patience", "plain_text", "plan", "random_plan",
            "refusals", "relay", "sampling", "schedule", "stops", "supervisor",
        )
    ),
    *(ROOT / "coordinator" / "planner").rglob("*.py"),
    *(ROOT / "tools" / "faults" / f"{name}.py" for name in ("schedule", "verdict")),
    *(
        ROOT / "agent" / f"{name}.py"
        for name in (
            "arrival", "arrival_text", "departure", "events", "frames", "grants", "kv", "kv_rows",
            "messages", "migration_messages", "mover", "moves", "pull", "relaying", "session",
            "window",
        )
    ),
]  # fmt: skip
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


def sources() -> list[Path]:
    return [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, also inside functions and for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downhill(room: str) -> None:
    above = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests"}
    for path in sorted((ROOT / room).rglob("*.py")):
        uphill = {m for m in imported_modules(path) if m.split(".")[0] in above}
        assert not uphill, f"{path.relative_to(ROOT)} imports uphill: {uphill}"


def test_compiled_code_outside_kernels_is_part_of_the_key_of_its_cache() -> None:
    compiled = {
        str(path.relative_to(ROOT))
        for path in sources()
        if path.parent.name != "kernels" and "kernels.jit" in imported_modules(path)
    }
    assert compiled
    assert compiled <= set(kernels._COMPILED_ELSEWHERE)
    assert all((ROOT / name).exists() for name in kernels._COMPILED_ELSEWHERE)


@pytest.mark.parametrize("path", PURE_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_decisions_are_pure(path: Path) -> None:
    impure = {m for m in imported_modules(path) if m.split(".")[0] in IMPURE}
    assert not impure, f"{path.name} imports {impure}"


def test_pure_modules_do_not_import_impure_ones_of_the_house() -> None:
    """A pure decision file may lean on house modules only if those are pure as well."""
    pure = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in PURE_FILES}
    edges = {
        "agent.sockets",
        "coordinator.control",
        "coordinator.hot_link",
        "coordinator.hot_socket",
        "coordinator.cluster",
    }
    for path in PURE_FILES:
        touched = {m for m in imported_modules(path) if m in edges}
        assert not touched, f"{path.name} imports {touched}"
    assert pure


def test_no_file_is_long() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    long = {
        str(p.relative_to(ROOT)): n
        for p in [*sources(), *tests]
        if (n := len(p.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert not long


def test_no_function_is_long() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not long


def test_nothing_is_unpickled() -> None:
    users = [str(p) for p in sources() if {"pickle", "shelve", "marshal"} & imported_modules(p)]
    assert not users


def test_every_public_name_exists_and_is_sorted() -> None:
    for path in sources():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
            ):
                names = ast.literal_eval(node.value)
                assert len(names) == len(set(names)), path
