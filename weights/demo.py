"""Where the shipped demo model lies."""

from pathlib import Path

from kernels.errors import ModelError

__all__ = ["demo_path"]


def demo_path() -> Path:
    """Return the demo's model directory, next to this file.

    Raises:
        ModelError: this installation lacks it.
    """
    path = Path(__file__).parent / "demo"
    if not (path / "manifest.json").is_file():
        raise ModelError(f"the demo model is missing from {path}; give a model with -m MODEL")
    return path
