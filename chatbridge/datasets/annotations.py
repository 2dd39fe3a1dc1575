"""Annotation files: lists of JSON entries in the formats of the fact sheet (2.6), read lazily and checked at once.

A list may be millions of entries long, and every data-loader worker has it. Therefore only the byte offsets of the
entries are kept (8 bytes each); an entry is parsed when it is asked for, from the memory-mapped file.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbridge.datasets.kinds import CAPTION, CONVERSATION, FIRST_PAIR, OCR, TaskKind
from chatbridge.processors.media import safe_name

_SHARED = ("video_id", "image_id")
"""Keys that name the file of every modality which has no key of its own; also the entry's id, in this order."""

_ROLES = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Record:
    """One annotation entry, typed.

    Attributes:
        id: ``id``, else what names its file, else its place in the list.
        files: modality -> file names, of the keys ``<modality>_id``.
        shared: file names for modalities without a key of their own.
        descriptions: modality -> text to show in place of a medium (``<modality>_text``).
        captions: ``desc`` or ``caption``.
        pairs: (question, acceptable answers) of ``question`` and ``answer``.
        ocr: ``text``.
        turns: ("human" or "assistant", text) of ``conversations``.
        references: acceptable answers that the entry gives itself, for evaluation.
        group: a free label that evaluation reports by.
    """

    id: str
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    descriptions: dict[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    pairs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ocr: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    references: tuple[str, ...] = ()
    group: str = ""

    @classmethod
    def parse(cls, entry: Any, index: int = 0, compat: str = "default") -> Record:
        """A record from a JSON entry.

        Args:
            entry: the JSON object; index: its place in the list.
            compat: "original" keeps two of the original's quirks: an absent caption is the text "[None]", and a
                list of answers to one question is one answer, the list as Python prints it.

        Raises:
            ValueError: with what is wrong; where it stands is for the caller to say.
        """
        if not isinstance(entry, (dict, Mapping)):  # dict first: an abstract class is asked in Python
            raise ValueError(f"an entry must be a JSON object, not {type(entry).__name__}")
        files = {}
        for name, value in entry.items():
            if name.endswith("_id") and isinstance(value, (str, int, list)):
                files[name[:-3]] = _strings(value, name)
        shared = next((files[k[:-3]] for k in _SHARED if k[:-3] in files), ())
        named = [str(entry["id"])] if entry.get("id") is not None else []
        named += [value[0] for value in (shared, *files.values()) if value]
        caption = entry["desc"] if entry.get("desc") is not None else entry.get("caption")
        answer = entry.get("answer")
        if compat == "original":
            caption = "[None]" if caption is None else caption
            if isinstance(answer, list) and not isinstance(entry.get("question"), list):
                answer = str(answer)
        return cls(
            id=named[0] if named else f"#{index}",
            files=files,
            shared=shared,
            descriptions={n[:-5]: _string(v, n) for n, v in entry.items() if n.endswith("_text") and v is not None},
            captions=_texts(caption, "caption"),
            pairs=_pairs(entry.get("question"), answer),
            ocr=_texts(entry.get("text"), "text"),
            turns=_turns(entry.get("conversations")),
            references=_texts(entry.get("references"), "references"),
            group=_string(entry["group"], "group") if entry.get("group") is not None else "",
        )

    def files_of(self, modality: str) -> tuple[str, ...]:
        """The file names of one modality: its own key's, else ``video_id``'s or ``image_id``'s; () if described.

        Raises:
            ValueError: when no key names any.
        """
        if modality in self.files:
            return self.files[modality]
        if modality in self.descriptions:
            return ()
        if not self.shared:
            raise ValueError(f"names no {modality}: it has none of the keys {modality}_id, {', '.join(_SHARED)}")
        return self.shared

    def check(self, kind: TaskKind, answered: bool = True) -> None:
        """Raise ValueError when the record lacks what a task kind needs (`answered`: an answer to learn, too)."""
        for modality in kind.modalities:
            self.files_of(modality)
        if kind.kind == CAPTION:
            _need(bool(self.captions) or not answered, "caption (or desc)")
        elif kind.kind == OCR:
            _need(bool(self.ocr) or not answered, "text")
        elif kind.asks:
            _need(bool(self.pairs), "question")
            _need(all(answers for _, answers in self.pairs) or not answered, "answer")
        elif kind.kind in (*FIRST_PAIR, CONVERSATION):
            _need(bool(self.turns), "conversations")
            _need(len(self.turns) > 1 or not answered, "an answer in conversations")

    def check_names(self, kind: TaskKind) -> None:
        """Raise ValueError for a file name that leaves the folder of its media (absolute, with "..", with NUL)."""
        for modality in kind.modalities:
            for name in self.files_of(modality):
                safe_name(name)


class AnnotationFile(Sequence):
    """The records of one annotation file: a JSON list, or JSON lines.

    Args:
        path: the file (``.json``, or ``.jsonl`` with one entry a line).
        kinds: what the entries must serve for; each entry is checked once, here.
        invalid: "error" refuses a file with bad entries; "skip" leaves them out (see `skipped`).
        answered: whether entries need answers (training) or may lack them (prediction).
        compat: as for `Record.parse`.

    Raises:
        ValueError: a file that is missing, not JSON, not a list, or empty; bad entries, with file, index and reason.
    """

    def __init__(
        self,
        path: str | Path,
        kinds: Sequence[TaskKind] = (),
        invalid: str = "error",
        answered: bool = True,
        compat: str = "default",
    ):
        if invalid not in ("error", "skip"):
            raise ValueError(f"invalid is 'error' or 'skip', not '{invalid}'")
        self.path = Path(path)
        self.kinds = tuple(kinds)
        self.compat = compat
        self.skipped: list[str] = []
        self._starts, self._ends = array("q"), array("q")
        self._map: mmap.mmap | None = None
        for index, (entry, start, end) in enumerate(_scan(self.path)):
            try:
                record = Record.parse(entry, index, compat)
                for kind in self.kinds:
                    record.check(kind, answered)
                    record.check_names(kind)
            except ValueError as error:
                self.skipped.append(f"{self.path}: entry {index}: {error}")
                continue
            self._starts.append(start)
            self._ends.append(end)
        if self.skipped and invalid == "error":
            more = f"\n... and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
            raise ValueError("\n".join(self.skipped[:5]) + more)
        if not self._starts:
            raise ValueError(f"{self.path} holds no {'valid ' if self.skipped else ''}annotations")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if self._map is None:  # opened per process: a memory map does not survive pickling
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        raw = self._map[self._starts[place] : self._ends[place]]
        try:
            return Record.parse(json.loads(raw.decode()), place, self.compat)
        except ValueError as error:
            raise ValueError(f"{self.path}: entry {place} changed while the run had it open: {error}") from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}


def _scan(path: Path) -> Iterator[tuple[Any, int, int]]:
    """Every entry of a file with the bytes it takes, one at a time."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"the annotation file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not text or text.isspace():
        raise ValueError(f"{path} is empty; an annotation file is a JSON list of entries")
    lines = path.suffix == ".jsonl"
    decoder = json.JSONDecoder()
    skip = " \t\r\n\ufeff"
    position, in_bytes, counted = 0, 0, 0  # characters read; bytes up to character `counted`

    def after_space(place: int) -> int:
        while place < len(text) and text[place] in skip:
            place += 1
        return place

    try:
        position = after_space(0)
        if not lines:
            if text[position] != "[":
                raise ValueError(f"{path} is not a JSON list: it starts with {text[position : position + 20]!r}")
            position = after_space(position + 1)
        while position < len(text) and (lines or text[position] != "]"):
            entry, end = decoder.raw_decode(text, position)
            start_byte = in_bytes + _size(text, counted, position)
            in_bytes = start_byte + _size(text, position, end)
            counted = end
            yield entry, start_byte, in_bytes
            position = after_space(end)
            if not lines:
                if text[position : position + 1] == ",":
                    position = after_space(position + 1)
                elif text[position : position + 1] != "]":
                    raise json.JSONDecodeError("expected ',' or ']'", text, position)
        if not lines and text[position : position + 1] != "]":
            raise json.JSONDecodeError("the list is not closed", text, position)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _size(text: str, start: int, end: int) -> int:
    piece = text[start:end]
    return len(piece) if piece.isascii() else len(piece.encode("utf-8"))


def _need(given: bool, what: str) -> None:
    if not given:
        raise ValueError(f"lacks {what}")


def _string(value: Any, name: str) -> str:
    """A string; numbers and booleans are written out ("yes"/"no" are for the annotator to write)."""
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"'{name}' must be text, not {type(value).__name__}")


def _strings(value: Any, name: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(_string(item, name) for item in items)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    """Texts of a string or a list, blank ones left out; given but all blank is an error."""
    if value is None:
        return ()
    texts = tuple(text for text in _strings(value, name) if text.strip())
    _need(bool(texts), f"any words in '{name}'")
    return texts


def _pairs(question: Any, answer: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if question is None:
        return ()
    if not isinstance(question, list):
        return ((_string(question, "question"), _texts(answer, "answer")),)
    answers = [None] * len(question) if answer is None else answer
    if not isinstance(answers, list) or len(answers) != len(question):
        count = len(answers) if isinstance(answers, list) else "one"
        raise ValueError(f"'question' lists {len(question)}, but 'answer' has {count}: they must be parallel")
    return tuple((_string(q, "question"), _texts(a, "answer")) for q, a in zip(question, answers, strict=True))


def _turns(entries: Any) -> tuple[tuple[str, str], ...]:
    if entries is None:
        return ()
    if not isinstance(entries, list) or not entries:
        raise ValueError("'conversations' must be a list of at least one turn")
    turns = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or entry.get("from") not in _ROLES:
            raise ValueError(f"conversations[{index}] needs 'from': human or gpt, and 'value'")
        role = _ROLES[entry["from"]]
        if role != ("human", "assistant")[index % 2]:
            raise ValueError(f"conversations[{index}] is by {entry['from']}: turns must alternate, human first")
        turns.append((role, _string(entry.get("value"), f"conversations[{index}].value")))
    return tuple(turns)
