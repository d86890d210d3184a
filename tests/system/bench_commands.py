"""Commands that measure, told to measure next to nothing; for tests that look at no figure."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tools.bandwidth

__all__ = ["measure_little", "refused_by", "shape_file"]


def measure_little(monkeypatch: pytest.MonkeyPatch, tool: ModuleType) -> None:
    """Have a tool read little memory."""
    monkeypatch.setattr(tool, "last_level_cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(tools.bandwidth, "MEASURE_S", 1e-6)


def shape_file(directory: Path, config: dict[str, Any]) -> Path:
    """Return a config.json for `--shape`."""
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return path


def refused_by(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *words: str | Path
) -> tuple[int, str]:
    """Return exit code and stderr of a command that measures nothing."""
    try:
        code = main([*map(str, words)])
    except SystemExit as e:  # argparse
        code = int(e.code or 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return code, captured.err
