"""Text to token ids and back; the only module that needs the tokenizers library."""

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from kernels.errors import ModelError, PromptError
from weights.checkpoint import read_json
from weights.directory import ModelDirectory
from weights.pieces import Pieces

__all__ = ["Detokenizer", "Tokenizer"]


class _DecoderOnly(msgspec.Struct):
    decoder: dict[str, Any] | None = None


def _load(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ModelError(
            "prompts in words need the tokenizers library; install it with "
            "pip install 'headwise[run]', or give token ids with --prompt-ids"
        ) from None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be used: {error}") from None


class Detokenizer:
    """Turns a growing run of token ids into text, never half a character.

    The pieces of text put together are the same however they are cut; bytes that are no UTF-8
    become U+FFFD.
    """

    def __init__(self, pieces: Pieces, follows_text: bool) -> None:
        """Start a run; `follows_text` tells whether a prompt with text stands before it."""
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_at_start = pieces.strips_first_space and not follows_text

    def push(self, token_id: int) -> str:
        """Return the text that the token completes, often empty."""
        data = self._pieces.bytes_of(token_id)
        if self._is_at_start and data:
            self._is_at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, or nothing."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """A model's tokenizer; special tokens as tokenizer.json and tokenizer_config.json say.

    Attributes:
        bos_id: the token that starts a text, if the model has one.
        eos_ids: all tokens that end one.
    """

    def __init__(self, model: ModelDirectory) -> None:
        """Load the tokenizer of a model.

        Raises:
            ModelError: the model has none, it is damaged, or the library is not installed.
        """
        path = model.path("tokenizer.json")
        if path is None:
            raise ModelError(
                f"model '{model.manifest.name}' has no tokenizer; give token ids with "
                f"--prompt-ids, or convert it again from a directory with tokenizer.json"
            )
        self._tokenizer = _load(path)
        config_path = model.path("tokenizer_config.json")
        self._options = read_json(config_path) if config_path is not None else {}
        self._vocab_size = model.config.vocab_size
        decoder = msgspec.json.decode(path.read_bytes(), type=_DecoderOnly).decoder
        added = self._tokenizer.get_added_tokens_decoder()
        hidden_ids = {token_id for token_id, token in added.items() if token.special}
        self._pieces = Pieces(decoder, self._tokenizer.id_to_token, hidden_ids)
        self.bos_id = model.config.bos_id
        if self.bos_id is None:
            self.bos_id = self._named_id("bos_token")
        eos_id = self._named_id("eos_token")
        self.eos_ids = frozenset(model.config.eos_ids) | ({eos_id} if eos_id is not None else set())

    def _named_id(self, key: str) -> int | None:
        token = self._options.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        token_id = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        return int(token_id) if token_id is not None else None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt; an empty one is BOS alone.

        Raises:
            PromptError: the text is no valid Unicode, is empty for a model without BOS, or
                holds tokens that the model lacks.
        """
        if not text:
            if self.bos_id is None:
                raise PromptError("this model has no BOS token to start from; give a prompt")
            return [self.bos_id]
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
            plain: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as error:
            raise PromptError(f"the prompt is no valid Unicode text: {error}") from None
        ids = self._with_options(ids, plain)
        largest = max(ids, default=0)
        if largest >= self._vocab_size:
            raise PromptError(
                f"the prompt holds token {largest}, but the model has only tokens 0 to "
                f"{self._vocab_size - 1}; tokenizer.json belongs to another model"
            )
        return ids

    def _with_options(self, ids: list[int], plain: list[int]) -> list[int]:
        """Apply add_bos_token and add_eos_token, which overrule tokenizer.json's template."""
        add_bos, bos_id = self._options.get("add_bos_token"), self._named_id("bos_token")
        if bos_id is not None and isinstance(add_bos, bool):
            has_bos = ids[:1] == [bos_id] and len(ids) > len(plain)
            if add_bos and ids[:1] != [bos_id]:
                ids = [bos_id, *ids]
            elif has_bos and not add_bos:
                ids = ids[1:]
        add_eos, eos_id = self._options.get("add_eos_token"), self._named_id("eos_token")
        if eos_id is not None and isinstance(add_eos, bool):
            has_eos = ids[-1:] == [eos_id] and plain[-1:] != [eos_id]
            if add_eos and ids[-1:] != [eos_id]:
                ids = [*ids, eos_id]
            elif has_eos and not add_eos:
                ids = ids[:-1]
        return ids

    def detokenizer(self, prompt_ids: Iterable[int] = ()) -> Detokenizer:
        """Start turning the tokens after a prompt into text.

        After a prompt with text a first space is kept, so that prompt and text join up.
        """
        return Detokenizer(self._pieces, any(self._pieces.bytes_of(i) for i in prompt_ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of whole token ids; special tokens have none."""
        detokenizer = self.detokenizer()
        return "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush()
