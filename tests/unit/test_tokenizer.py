"""Tokenizer and detokenizer: byte-level and SentencePiece, special tokens, pieces of text."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import ModelError, PromptError
from tests.unit.tiny_checkpoint import TINY_CONFIG, make_checkpoint
from weights.convert import convert
from weights.directory import ModelDirectory
from weights.pieces import Pieces
from weights.tokenizer import Detokenizer, Tokenizer

tokenizers = pytest.importorskip("tokenizers")

SHARED = Path(__file__).parents[3] / "shared" / "models"
WORDS = ["\N{LOWER ONE EIGHTH BLOCK}", "a", "b", "ab", "\N{LOWER ONE EIGHTH BLOCK}ab"]

# Token ids of the little SentencePiece vocabulary below: 0 <unk>, 1 <s>, 2 </s>, then the bytes.
BOS, EOS, FIRST_BYTE, FIRST_WORD = 1, 2, 3, 259


def _sentencepiece() -> dict[str, Any]:
    """Return a tokenizer.json as converted from Llama's tokenizer.model, with 5 words."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": i, "content": pieces[i], **flags, "special": True} for i in range(3)]
    template = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": space},
                {"type": "Replace", "pattern": {"String": " "}, "content": space},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": space}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [["a", "b"], [space, "ab"]],
        },
    }


def _byte_level() -> dict[str, Any]:
    """Return a byte-level tokenizer.json without merges, ids as in the 256 sorted stand-ins."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<|end|>"])
    model.add_tokens(["<tool one>"])
    fields: dict[str, Any] = json.loads(model.to_str())
    return fields


def _open(
    path: Path, fields: dict[str, Any] | None, options: dict[str, Any] | None = None, **config: Any
) -> Tokenizer:
    raw = {**TINY_CONFIG, "vocab_size": 264, **config}
    make_checkpoint(path / "src", raw)
    if fields is not None:
        (path / "src" / "tokenizer.json").write_text(json.dumps(fields))
    if options is not None:
        (path / "src" / "tokenizer_config.json").write_text(json.dumps(options))
    convert(path / "src", path / "out", "q4")
    with ModelDirectory.open(path / "out") as model:
        return Tokenizer(model)


def _pushed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def test_sentencepiece_encodes_and_decodes(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _sentencepiece())
    ids = tokenizer.encode("ab é")
    assert ids == [BOS, 263, 259, FIRST_BYTE + 0xC3, FIRST_BYTE + 0xA9]
    assert tokenizer.decode(ids) == "ab é"
    assert (tokenizer.bos_id, set(tokenizer.eos_ids)) == (1, {2})


def test_an_empty_prompt_is_bos_alone(tmp_path: Path) -> None:
    assert _open(tmp_path, _sentencepiece()).encode("") == [BOS]


def test_an_empty_prompt_without_bos_is_refused(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _byte_level(), bos_token_id=None)
    with pytest.raises(PromptError, match="has no BOS token to start from; give a prompt"):
        tokenizer.encode("")


def test_half_characters_are_held_back(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _sentencepiece())
    ids = [FIRST_BYTE + byte for byte in "€".encode()]
    assert _pushed(tokenizer.detokenizer(), ids) == ["", "", "€", ""]
    assert _pushed(tokenizer.detokenizer(), ids[:2]) == ["", "", "\ufffd"]
    # A byte that cannot go on ends the wait, and what follows is whole again.
    assert _pushed(tokenizer.detokenizer(), [*ids[:2], 262])[2] == "\ufffdab"


def test_special_tokens_have_no_text(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _sentencepiece())
    assert _pushed(tokenizer.detokenizer(), [BOS, 263, EOS, 0, 10**6]) == ["", "ab", "", "", "", ""]


def test_the_first_space_belongs_to_the_tokenizer_but_not_after_a_prompt(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _sentencepiece())
    assert _pushed(tokenizer.detokenizer(), [263, 263]) == ["ab", " ab", ""]
    assert _pushed(tokenizer.detokenizer([BOS]), [BOS, 259, 263]) == ["", "", " ab", ""]
    assert _pushed(tokenizer.detokenizer([BOS, 263]), [263]) == [" ab", ""]


def test_byte_level_keeps_spaces_and_added_tokens(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _byte_level())
    ids = tokenizer.encode(" é<tool one><|end|>")
    assert len(ids) == 5
    assert _pushed(tokenizer.detokenizer(), ids) == [" ", "", "é", "<tool one>", "", ""]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), cut=st.integers(0, 60))
def test_pieces_put_together_are_the_text(text: str, cut: int) -> None:
    for fields in (_SENTENCEPIECE, _BYTE_LEVEL):
        library = tokenizers.Tokenizer.from_str(json.dumps(fields))
        pieces = Pieces(
            fields["decoder"], library.id_to_token, {0, 1, 2} if fields is _SENTENCEPIECE else {256}
        )
        ids = library.encode(text, add_special_tokens=False).ids
        head = "".join(_pushed(Detokenizer(pieces, follows_text=False), ids))
        assert head == library.decode(ids)
        before, after = ids[:cut], ids[cut:]
        run = Detokenizer(pieces, follows_text=False)
        joined = "".join(run.push(i) for i in before)
        assert "\ufffd" in text or "\ufffd" not in joined
        assert joined + "".join(run.push(i) for i in after) + run.flush() == head


_SENTENCEPIECE, _BYTE_LEVEL = _sentencepiece(), _byte_level()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=12))
def test_any_bytes_become_text_at_once_or_in_pieces(data: bytes) -> None:
    library = tokenizers.Tokenizer.from_str(json.dumps(_SENTENCEPIECE))
    pieces = Pieces(_SENTENCEPIECE["decoder"], library.id_to_token, {0, 1, 2})
    run = Detokenizer(pieces, follows_text=True)
    assert "".join(_pushed(run, [FIRST_BYTE + b for b in data])) == data.decode(errors="replace")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, [BOS, 263]),
        ({}, [BOS, 263]),
        ({"bos_token": "<s>", "add_bos_token": True}, [BOS, 263]),
        ({"bos_token": "<s>", "add_bos_token": False}, [263]),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": False}, [263]),
        ({"eos_token": "</s>", "add_eos_token": True}, [BOS, 263, EOS]),
        ({"eos_token": "</s>", "add_eos_token": False}, [BOS, 263]),
    ],
)
def test_tokenizer_config_decides_on_bos_and_eos(
    tmp_path: Path, options: dict[str, Any] | None, expected: list[int]
) -> None:
    assert _open(tmp_path, _sentencepiece(), options).encode("ab") == expected


def test_bos_is_added_where_the_template_has_none(tmp_path: Path) -> None:
    fields = {**_sentencepiece(), "post_processor": None}
    options = {"bos_token": "<s>", "add_bos_token": True}
    assert _open(tmp_path, fields, options).encode("ab") == [BOS, 263]


def test_all_end_tokens_count(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _byte_level(), {"eos_token": "<|end|>"}, eos_token_id=[7, 8])
    assert tokenizer.eos_ids == {7, 8, 256}


def test_tokens_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    tokenizer = _open(tmp_path, _sentencepiece(), vocab_size=260)
    with pytest.raises(PromptError, match="holds token 263, but the model has only tokens 0 to"):
        tokenizer.encode("ab")


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no valid Unicode text"):
        _open(tmp_path, _sentencepiece()).encode("a\udcff")


def test_a_model_without_tokenizer_points_to_prompt_ids(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer; give token ids with --prompt-ids"):
        _open(tmp_path, None)


def test_a_missing_library_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModelError, match=r"pip install 'headwise\[run\]'"):
        _open(tmp_path, _sentencepiece())


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        (None, "decoder none is not supported; supported are ByteLevel and SentencePiece"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "decoder step"),
        ({"type": "Fuse"}, "decoder Fuse is not supported"),
    ],
)
def test_other_decoders_are_refused(tmp_path: Path, decoder: object, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        _open(tmp_path, {**_sentencepiece(), "decoder": decoder})


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be used"):
        _open(tmp_path, {"version": "1.0"})


@pytest.mark.parametrize(("scheme", "first"), [("always", "ab"), ("never", " ab")])
def test_metaspace_is_understood(scheme: str, first: str) -> None:
    decoder = {"type": "Metaspace", "replacement": WORDS[0], "prepend_scheme": scheme}
    pieces = Pieces(decoder, {5: f"{WORDS[0]}ab"}.get, set())
    assert _pushed(Detokenizer(pieces, follows_text=False), [5, 5]) == [first, " ab", ""]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/models is absent")
def test_stories260k_prompts_and_texts(tmp_path: Path) -> None:
    convert(SHARED / "stories260K" / "hf", tmp_path / "out", "q4")
    with ModelDirectory.open(tmp_path / "out") as model:
        tokenizer = Tokenizer(model)
    for case in json.loads((SHARED / "stories260K" / "reference_greedy.json").read_text()):
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        run = tokenizer.detokenizer(case["prompt_ids"])
        text = case["prompt"] + "".join(_pushed(run, case["greedy_new_ids"]))
        assert text == tokenizer.decode(case["prompt_ids"] + case["greedy_new_ids"])
        assert case["text"].startswith(text) or text.startswith(case["text"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/models is absent")
@pytest.mark.parametrize("name", ["llama2", "qwen3"])
def test_published_tokenizers_decode_as_the_library_does(name: str) -> None:
    path = SHARED / "tokenizers" / name / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    added = library.get_added_tokens_decoder()
    hidden = {token_id for token_id, token in added.items() if token.special}
    pieces = Pieces(json.loads(path.read_bytes())["decoder"], library.id_to_token, hidden)
    for text in (
        "Hello  world",
        "héllo €uro 😀👩‍👩‍👧",
        "  lead",
        "日本語 مرحبا",
        "<tool_call> x\n\ty",
    ):
        ids = library.encode(text).ids
        assert "".join(_pushed(Detokenizer(pieces, follows_text=False), ids)) == library.decode(ids)
