"""`python tools/convert.py` as a process: memory, exit codes, signals."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.tiny_checkpoint import TINY_CONFIG, make_checkpoint
from weights.directory import ModelDirectory
from weights.families import TensorNames, read_config

ROOT = Path(__file__).parents[2]

# Not getrusage: its peak survives exec and would be that of the test process.
_PEAK = """
import sys
from pathlib import Path
from weights.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
status = Path("/proc/self/status").read_text()
print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""


def _sparse_checkpoint(path: Path, raw_config: dict[str, Any]) -> int:
    """Write a float16 checkpoint of zeros that takes no disk; return the largest tensor."""
    shapes = TensorNames(read_config(raw_config)).shapes()
    path.mkdir()
    (path / "config.json").write_text(json.dumps(raw_config))
    header: dict[str, Any] = {}
    at = largest = 0
    for name, shape in shapes.items():
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
        largest = max(largest, n_bytes)
    encoded = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + at)
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "q8"])
def test_peak_memory_is_below_twice_the_largest_tensor(tmp_path: Path, dtype: str) -> None:
    raw_config = {
        **TINY_CONFIG,
        "hidden_size": 512,
        "intermediate_size": 32768,
        "num_hidden_layers": 1,
    }
    largest_bytes = _sparse_checkpoint(tmp_path / "src", raw_config)
    assert largest_bytes == 32 << 20
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "src"), str(tmp_path / "out"), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak_bytes = int(done.stdout)
    assert peak_bytes < 2 * largest_bytes + 200_000_000
    # What is really needed: that tensor, the interpreter with NumPy, and some small pieces.
    assert peak_bytes < largest_bytes + 150_000_000


def _script(*arguments: str, cwd: Path, **extra: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "convert.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **extra)


def test_the_script_converts_from_anywhere(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "src")
    options = ["--dtype", "q4", "--source", "me/tiny", "--revision", "r", "--licence", "MIT"]
    done = _script("src", "out", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out: llama, q4, 0.")
    lines = done.stderr.splitlines()
    assert lines[-2].startswith("converting: 100 % of")
    assert lines[-1] == "note: SRC has no tokenizer.json, so prompts need --prompt-ids"
    assert len(lines) <= 12
    with ModelDirectory.open(tmp_path / "out") as model:
        assert (model.manifest.name, model.manifest.licence) == ("tiny", "MIT")
    again = _script("src", "out", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "error: 'out' exists; remove it or choose another OUT\n"


def test_a_real_write_error_ends_the_script(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "src")

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = _script("src", "out", "--dtype", "f32", cwd=tmp_path, preexec_fn=limit_files)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the disk of 'out' is full (File too")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    _sparse_checkpoint(tmp_path / "src", {**TINY_CONFIG, "hidden_size": 256, "vocab_size": 200_000})
    command = [sys.executable, str(ROOT / "tools" / "convert.py"), "src", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as script:
        assert script.stderr is not None
        assert script.stderr.readline().startswith("converting:")
        script.send_signal(signal.SIGTERM)
        script.stderr.read()
        assert script.wait(timeout=30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
