"""What all bad-input tests share: the command must say what is wrong, in one line, and stop."""

import re
from pathlib import Path

import psutil
import pytest

from tools.cli import main

__all__ = ["error_of"]


def error_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a verb that must fail with code 1; return what stands after `error: `."""
    before = psutil.Process().children()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert set(psutil.Process().children()) <= set(before), "agents are left"
    assert code == 1, captured.err
    return _only_error(captured.out, captured.err)


def _only_error(out: str, err: str) -> str:
    assert out == ""
    assert "Traceback" not in err
    before, found, text = err.partition("error: ")
    assert found, err
    # Only progress may stand before it, and only indented details after its first line.
    assert all(re.match(r"converting: +\d+ %", line) for line in before.splitlines()), err
    first, *details = text.splitlines()
    assert all(line.startswith("  ") for line in details), err
    # Not a bare Python error: words, a value or name, and mostly what to do.
    assert len(first.split()) >= 5
    return text.rstrip("\n")
