"""From text to the token numbers of an encoder, truncated at its last position.

A folder's own settings for truncating and padding are not used: they are somebody's training
(MiniLM's cut at 128 tokens and pad everything to that), and padding is a matter of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysers.errors import CheckpointError
from raysers.models.text_families import TextFamily

TOKENIZER_FILE = "tokenizer.json"

#: What a tokenizer may be made of, for the content hash and for fetching.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token numbers of one text, and whether some did not fit."""

    ids: tuple[int, ...]
    truncated: bool


class TextTokenizer:
    """The tokenizer of a model folder; makes at most `most` tokens of a text."""

    def __init__(self, folder: Path, family: TextFamily, most: int) -> None:
        self._backend = _backend(folder, family)
        self._backend.no_padding()
        self._backend.enable_truncation(max_length=most)

    @property
    def largest_id(self) -> int:
        """The largest token number it can make."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=0)

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of every text with the special ones around them, in the order of `texts`."""
        # one by one: the library's own threads would outlive this call in every fork
        return [self._tokens(text) for text in texts]

    def _tokens(self, text: str) -> Tokens:
        # half a character, as broken file names and tables have, is a replacement character
        clean = text.encode("utf-8", "replace").decode("utf-8")
        encoding = self._backend.encode(clean)
        return Tokens(ids=tuple(encoding.ids), truncated=bool(encoding.overflowing))


def _backend(folder: Path, family: TextFamily) -> Any:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise CheckpointError(f"{path} is not a tokenizer: {_first_line(error)}") from error
    return _from_vocabulary(folder, family)


def _from_vocabulary(folder: Path, family: TextFamily) -> Any:
    """The tokenizer of an older folder, which has a vocabulary in its family's layout."""
    import transformers

    tokenizer_class = getattr(transformers, family.tokenizer_class)
    if not any((folder / name).is_file() for name in tokenizer_class.vocab_files_names.values()):
        wanted = " or ".join([TOKENIZER_FILE, *tokenizer_class.vocab_files_names.values()])
        raise CheckpointError(f"{folder} has no tokenizer: expected {wanted}")
    try:
        # the class is ours to name, so no code of the folder is looked at
        return tokenizer_class.from_pretrained(str(folder), local_files_only=True)._tokenizer
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder}: its tokenizer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
