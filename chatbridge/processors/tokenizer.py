"""Text to token ids and back, one plain interface over SentencePiece models and transformers tokenizers.

The original tokenises every piece of a conversation on its own, without special tokens, by the
slow LLaMA tokenizer: special strings are cut out first, what lies between goes through SentencePiece, which puts
a word-boundary mark in front of each piece. `SentencePieceTokenizer` does exactly that, whatever the installed
release of transformers makes of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from chatbridge.common.documents import check_file
from chatbridge.common.tokenizer import Tokenizer
from chatbridge.common.tokenizer_files import declared_tokens, read_sentencepiece, read_side_file


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
        if not os.path.lexists(file):
            raise ValueError(f"no SentencePiece model at {file}; give the folder that holds tokenizer.model")
        self.model = read_sentencepiece(file)
        declared = declared_tokens(file.parent)
        added, named = declared.embedded(declared.added), declared.named
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
        # The original pads with EOS even where the vocabulary has a token for padding.
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
    """Any tokenizer that transformers itself knows how to load from a folder, behind the same interface.

    Args:
        path: the folder (``tokenizer.json`` or a vocabulary of the model's own kind).

    Raises:
        ValueError: when transformers finds no tokenizer there, or one that needs code of its own (which never runs).
    """

    def __init__(self, path: str | Path):
        from transformers import AutoTokenizer  # slow to import, and not needed for SentencePiece models

        folder = Path(path)
        for name in FILES:
            if os.path.lexists(folder / name):
                check_file(folder / name)
        declared = declared_tokens(folder)
        with _told(folder, bool(read_side_file(folder / "tokenizer_config.json").get("auto_map"))):
            self.model = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
            vocabulary = self.model.get_vocab()
            embedded = set(declared.embedded(vocabulary).values())
            self._spare = set(vocabulary.values()) - embedded
            self.vocab_size = 1 + max(embedded)
            self.bos_id, self.eos_id = self.model.bos_token_id, self.model.eos_token_id
            candidates = [self.eos_id, self.model.pad_token_id, 0]
            self.pad_id = next(i for i in candidates if i is not None and i not in self._spare)
            self.decode(self.encode("a b"))

    def encode(self, text: str) -> list[int]:
        ids = self.model.encode(text, add_special_tokens=False)
        return [index for index in ids if index not in self._spare]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.model.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )


FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "spiece.model", "config.json",
)  # fmt: skip
"""What transformers may open for a tokenizer."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder: SentencePiece where there is a ``tokenizer.model``, else transformers'.

    Raises:
        ValueError: when the path does not exist or holds no tokenizer.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ValueError(f"the tokenizer folder {path} does not exist")
    if not path.is_dir() or os.path.lexists(path / "tokenizer.model"):
        return SentencePieceTokenizer(path)
    return HfTokenizer(path)


@contextmanager
def _told(folder: Path, brings_code: bool) -> Iterator[None]:
    """Whatever transformers and its libraries make of the files of others becomes one line that names them."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of the tokenizers library are no Exceptions
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        if brings_code:
            reason = (
                "it needs code of its own (auto_map in tokenizer_config.json), which is never run; take a tokenizer "
                "that transformers knows"
            )
        raise ValueError(f"no tokenizer can be read from {folder}: {reason}") from error
