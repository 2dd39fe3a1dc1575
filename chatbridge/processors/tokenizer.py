"""Text to token ids and back, one plain interface over SentencePiece models and transformers tokenizers.

The original (fact sheet 2.3) tokenises every piece of a conversation on its own, without special tokens, by the
slow LLaMA tokenizer: special strings are cut out first, what lies between goes through SentencePiece, which puts
a word-boundary mark in front of each piece. `SentencePieceTokenizer` does exactly that, whatever the installed
release of transformers makes of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece

from chatbridge.common.tokenizer import Tokenizer


class SentencePieceTokenizer:
    """A SentencePiece model with the special and added tokens that its folder declares.

    Args:
        path: the model's folder, or its ``tokenizer.model``.

    Raises:
        ValueError: when there is no readable SentencePiece model there.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        file = path / "tokenizer.model" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"no SentencePiece model at {file}; give the folder that holds tokenizer.model")
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file} is not a SentencePiece model ({error})") from error
        added, named = _declared_tokens(file.parent)
        control = [self.model.unk_id(), self.model.bos_id(), self.model.eos_id(), self.model.pad_id()]
        self._special = {self.model.id_to_piece(i): i for i in control if i >= 0} | added
        for token in named.values():
            index = self.model.piece_to_id(token)
            if index != self.model.unk_id():
                self._special.setdefault(token, index)
        self._by_id = {index: token for token, index in self._special.items()}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self.vocab_size = max([self.model.vocab_size(), *(i + 1 for i in self._special.values())])
        self.bos_id = self._named(named, "bos_token", self.model.bos_id())
        self.eos_id = self._named(named, "eos_token", self.model.eos_id())
        # The original pads with EOS even where the vocabulary has a token for padding (fact sheet 2.3).
        self.pad_id = self.eos_id if self.eos_id is not None else 0

    def _named(self, named: Mapping[str, str], role: str, default: int) -> int | None:
        index = self._special.get(named.get(role, ""))
        if index is not None:
            return index
        return default if default >= 0 else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._split.split(text) if self._split else [text]:
            if piece in self._special:
                ids.append(self._special[piece])
            elif piece:
                ids.extend(self.model.encode(piece))
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        text, run = [], []
        for index in ids:
            index = int(index)
            if index not in self._by_id:
                if not 0 <= index < self.model.vocab_size():
                    raise ValueError(f"token id {index} is outside the vocabulary of {self.vocab_size}")
                run.append(index)
                continue
            text.append(self.model.decode(run))
            run = []
            if not skip_special:
                text.append(self._by_id[index])
        text.append(self.model.decode(run))
        return "".join(text)


class HfTokenizer:
    """Any tokenizer that transformers loads from a folder, behind the same interface.

    Args:
        path: the folder (``tokenizer.json`` or a vocabulary of the model's own kind).

    Raises:
        ValueError: when transformers finds no tokenizer there.
    """

    def __init__(self, path: str | Path):
        from transformers import AutoTokenizer  # slow to import, and not needed for SentencePiece models

        try:
            self.model = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(f"no tokenizer can be read from {path}: {str(error).splitlines()[0]}") from error
        self.bos_id = self.model.bos_token_id
        self.eos_id = self.model.eos_token_id
        candidates = [self.eos_id, self.model.pad_token_id, 0]
        self.pad_id = next(i for i in candidates if i is not None)
        self.vocab_size = len(self.model)

    def encode(self, text: str) -> list[int]:
        return list(self.model.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.model.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder: SentencePiece where there is a ``tokenizer.model``, else transformers'.

    Raises:
        ValueError: when the path does not exist or holds no tokenizer.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"the tokenizer folder {path} does not exist")
    if path.is_file() or (path / "tokenizer.model").is_file():
        return SentencePieceTokenizer(path)
    return HfTokenizer(path)


def _declared_tokens(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Added tokens (text -> id) and named ones ("bos_token" -> text) from a model folder's JSON files."""
    added: dict[str, int] = {}
    named: dict[str, str] = {}
    config = _read_json(folder / "tokenizer_config.json")
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        added[_content(token)] = int(index)
    for token, index in _read_json(folder / "added_tokens.json").items():
        added[token] = int(index)
    for source in (config, _read_json(folder / "special_tokens_map.json")):
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            if source.get(role):
                named[role] = _content(source[role])
    return {t: i for t, i in added.items() if t}, named


def _content(token: str | Mapping) -> str:
    return token if isinstance(token, str) else str(token.get("content", ""))


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return data
