"""Stop strings and characters of several bytes through the real path, one byte a token."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from coordinator.results import Result
from tests.system.conftest import Crew
from tests.system.scripted import BOS, scripted_model
from tools.cli import main

# Characters of 1, 2, 3 and 4 bytes, no byte twice.
TEXT = "Hi é€\U0001f600!?ok"

Written = tuple[list[str], Result]
Write = Callable[..., Written]


@pytest.fixture(scope="module")
def model(models_root: Path) -> Path:
    (models_root / "stops").mkdir()
    return scripted_model(models_root / "stops", TEXT)


@pytest.fixture(scope="module", params=[1, 3])
def write(request: pytest.FixtureRequest, crew: Crew, model: Path) -> Iterator[Write]:
    """Return a function that gives the pieces of a text as they arrived, and the result."""
    with crew.cluster(model) as cluster:
        cluster.install(cluster.make_plan(cluster.agent_names()[: request.param]))

        def run(prompt: str = "", max_tokens: int = 100, stop: Sequence[str] = ()) -> Written:
            generation = cluster.generate(prompt, max_tokens=max_tokens, stop=stop)
            pieces = [token.text for token in generation]
            return pieces, generation.result()

        yield run


def test_the_model_writes_its_text_a_character_at_a_time(write: Write) -> None:
    pieces, result = write()
    assert result.text == "".join(pieces) == TEXT
    assert result.prompt_token_ids == [BOS]
    assert len(result.token_ids) == len(TEXT.encode())
    assert result.finish_reason == "stop"
    # A character comes with its last byte; until then nothing does.
    assert pieces == [c for char in TEXT for c in [""] * (len(char.encode()) - 1) + [char]]


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["\U0001f600"], "Hi é€"),
        (["€\U0001f600!"], "Hi é"),
        (["é€"], "Hi "),
        (["H"], ""),
        (["k"], TEXT[:-1]),
        (["€!", "\U0001f600!"], "Hi é€"),
        (["?ok", "!?o"], "Hi é€\U0001f600"),
        ([TEXT], ""),
    ],
)
def test_a_stop_string_across_tokens_ends_the_text_before_it(
    write: Write, stop: list[str], text: str
) -> None:
    pieces, result = write(stop=stop)
    assert result.text == "".join(pieces) == text
    assert result.finish_reason == "stop"
    # It ends with the last byte of the first stop string, not later.
    ends = [TEXT.index(s) + len(s) for s in stop if s in TEXT]
    assert len(result.token_ids) == min(len(TEXT[:end].encode()) for end in ends)


@pytest.mark.parametrize("stop", [["ok!"], ["\U0001f600 "], ["é\U0001f600", "ko", "kk"]])
def test_what_might_have_become_a_stop_string_is_not_lost(write: Write, stop: list[str]) -> None:
    pieces, result = write(stop=stop)
    assert result.text == "".join(pieces) == TEXT
    assert len(result.token_ids) == len(TEXT.encode())


def test_a_stop_string_that_begins_in_the_prompt_is_none(write: Write) -> None:
    _, result = write("H", stop=["Hi"])
    assert result.text == TEXT[1:]


@pytest.mark.parametrize("n_tokens", range(1, 14))
def test_max_tokens_inside_a_character_ends_with_a_replacement(write: Write, n_tokens: int) -> None:
    pieces, result = write(max_tokens=n_tokens, stop=["no such text"])
    wanted = TEXT.encode()[:n_tokens].decode(errors="replace")
    assert result.text == "".join(pieces) == wanted
    assert (result.finish_reason, len(result.token_ids)) == ("length", n_tokens)


def test_the_command_stops_there_too(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", str(model), "--stop", "€\U0001f600"]) == 0
    assert capsys.readouterr().out == "Hi é\n"
