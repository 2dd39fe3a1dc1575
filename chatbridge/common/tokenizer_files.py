"""The files of a tokenizer in a model's folder: read whole, or refused with file and reason."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from chatbridge.common.documents import (
    DocumentError,
    read_bytes,
    read_json,
    repaired,
)


@dataclass(frozen=True)
class DeclaredTokens:
    """Tokens that the JSON files of a model's folder declare beside its vocabulary.

    Attributes:
        added: text -> id. named: role ("bos_token", "pad_token", ...) -> text.
        rows: of the model's table, by the folder's ``config.json``; None where that does not say.
    """

    added: dict[str, int]
    named: dict[str, str]
    rows: int | None = None

    def embedded(self, vocabulary: Mapping[str, int]) -> dict[str, int]:
        """A vocabulary without padding tokens behind the model's table.

        Llama 2 was published with one: it is never embedded, so that the table has no row for it. Other tokens there
        stay: a model that lacks their rows is not the tokenizer's.
        """
        return {
            token: index
            for token, index in vocabulary.items()
            if self.rows is None or index < self.rows or not self._is_padding(token)
        }

    def _is_padding(self, token: str) -> bool:
        ends = (self.named.get("bos_token"), self.named.get("eos_token"))
        named = token == self.named.get("pad_token") and token not in ends
        return named or re.fullmatch(r"\W*pad\W*", token, re.IGNORECASE) is not None


def declared_tokens(folder: Path) -> DeclaredTokens:
    """What ``tokenizer_config.json``, ``added_tokens.json`` and ``special_tokens_map.json`` of a folder declare.

    Raises:
        DocumentError: naming the file that cannot be read, or is not what it should be.
    """
    added: dict[str, int] = {}
    named: dict[str, str] = {}
    file = folder / "tokenizer_config.json"
    config = read_side_file(file)
    _name_roles(named, config, file)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise DocumentError(file, "added_tokens_decoder is not a JSON object")
    for index, token in decoder.items():
        added[_content(token, file)] = _index(index, file)
    file = folder / "added_tokens.json"
    for token, index in read_side_file(file).items():
        added[repaired(token)] = _index(index, file)
    file = folder / "special_tokens_map.json"
    _name_roles(named, read_side_file(file), file)
    rows = read_side_file(folder / "config.json").get("vocab_size")
    added = {token: index for token, index in added.items() if token}
    return DeclaredTokens(added, named, rows if isinstance(rows, int) else None)


def _name_roles(named: dict[str, str], plain: Mapping[str, Any], file: Path) -> None:
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if plain.get(role):
            named[role] = _content(plain[role], file)


def read_sentencepiece(file: Path) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model. Raises DocumentError."""
    data = read_bytes(file)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        model.id_to_piece(list(range(model.vocab_size())))  # each must be text
        model.decode(model.encode("a b"))
    except Exception as error:
        raise DocumentError(
            file, f"is not a SentencePiece model ({' '.join(str(error).split())}); fetch it again"
        ) from None
    return model


def read_side_file(file: Path) -> dict[str, Any]:
    """A JSON object that need not be there (then it is empty). Raises DocumentError."""
    plain = read_json(file) if os.path.lexists(file) else {}
    if not isinstance(plain, dict):
        raise DocumentError(file, "must hold a JSON object")
    return plain


def _content(token: Any, file: Path) -> str:
    text = token.get("content", "") if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise DocumentError(file, f"{str(token)[:80]} is no token")
    return repaired(text)


def _index(value: Any, file: Path) -> int:
    text = str(value)[:20]
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise DocumentError(file, f"{text!r} is no id of a token")
    return int(text)
