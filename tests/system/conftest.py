"""Real processes and real sockets: models converted once, agents shared by many tests."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.cluster import Cluster
from tests.system.processes import AGENT, Command, free_port
from weights.convert import convert, convert_random
from weights.manifest import DType

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "models"
DATA = ROOT / "tests" / "data"

Models = Callable[[str, DType], Path]

# A model without tokenizer and end: it goes on writing ids until somebody stops it.
ENDLESS_CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
    "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 4,
    "num_key_value_heads": 4, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "vocab_size": 600,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for admin sockets, so that `run` does not attach to a coordinator of the user."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("run")
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        yield path


@pytest.fixture(scope="session")
def stories() -> Path:
    """stories260K's Hugging Face directory and references."""
    if not (SHARED / "stories260K").is_dir():
        pytest.skip(f"the pretrained model stories260K is not at {SHARED}")
    return SHARED / "stories260K"


@pytest.fixture(scope="session")
def models_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all converted models of the session lie."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def converted(models_root: Path) -> Models:
    """Return a function (source directory, dtype) -> headwise model, converted once a session."""
    done: dict[tuple[str, str], Path] = {}

    def model(source: str, dtype: DType) -> Path:
        if (source, dtype) not in done:
            out = models_root / f"{len(done)}-{dtype}"
            convert(Path(source), out, dtype)
            done[source, dtype] = out
        return done[source, dtype]

    return model


def random_model(root: Path, name: str, dtype: DType = "q8", **changes: Any) -> Path:
    """Make a model of random weights in the shape of ENDLESS_CONFIG with some changes."""
    config = root / f"{name}.json"
    config.write_text(json.dumps({**ENDLESS_CONFIG, **changes}))
    convert_random(config, root / name, dtype, seed=5)
    return root / name


@pytest.fixture(scope="session")
def endless(models_root: Path) -> Path:
    """A small random model that never ends a text."""
    return random_model(models_root, "endless")


class Crew:
    """Agents that stay while coordinators and models come and go: they dial, again and again."""

    n_agents = 9

    def __init__(self, models_root: Path) -> None:
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.agents = [
            Command(
                "--coordinator", self.endpoint, "--name", f"board-{i}", "--threads", "1",
                "--model-dir", models_root, program=AGENT,
            )
            for i in range(self.n_agents)
        ]  # fmt: skip

    def cluster(self, model: Path, **options: Any) -> Cluster:
        """Start a coordinator for a model; all agents of the crew hold a part of it."""
        options = {"exact": True, "place": "spread", **options}
        return Cluster(model, bind=self.endpoint, min_agents=self.n_agents, **options)

    def close(self) -> None:
        for agent in self.agents:
            agent.close()


@pytest.fixture(scope="session")
def crew(models_root: Path) -> Iterator[Crew]:
    """Agent processes for every test that only needs some agents."""
    crew = Crew(models_root)
    yield crew
    crew.close()
