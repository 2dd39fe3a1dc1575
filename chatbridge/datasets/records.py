"""Annotation entries, typed: what an entry in the formats of the original's data_task.py says, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from chatbridge.common.documents import repaired
from chatbridge.datasets.kinds import CAPTION, CONVERSATION, FIRST_PAIR, OCR, TaskKind
from chatbridge.processors.media_loader import safe_name

_SHARED = ("video_id", "image_id")
"""Keys that name the file of every modality which has no key of its own; also the entry's id, in this order."""

_ROLES = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Record:
    """One annotation entry, typed. All its texts can be written as UTF-8 (see `repaired`); names of files are as given.

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
        problems: key -> what is wrong with its value. An entry may have keys that nobody asks for.
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
    problems: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, entry: Any, index: int = 0) -> Record:
        """A record from a JSON entry. A value that is null, NaN, infinite, blank or an empty list is missing.

        Args:
            entry: the JSON object; index: its place in the list.

        Raises:
            ValueError: no JSON object; where it stands is for the caller to say. What is wrong with the values of
                keys is for `check`, which looks at the keys that are needed.
        """
        if not isinstance(entry, (dict, Mapping)):  # dict first: an abstract class is asked in Python
            raise ValueError(f"an entry must be a JSON object, not {type(entry).__name__}")
        problems: dict[str, str] = {}

        def read(what: str, reader: Callable, value: Any, *more: Any) -> Any:
            try:
                return () if value is None else reader(value, *more)
            except ValueError as error:
                problems[what] = str(error)
                return ()

        files, descriptions = {}, {}
        for name, value in entry.items():
            if name.endswith("_id"):
                if found := read(name, _files, value, name):
                    files[name[:-3]] = found
            elif name.endswith("_text") and not is_blank(value) and (text := read(name, _string, value, name)):
                descriptions[name[:-5]] = text
        shared = next((files[k[:-3]] for k in _SHARED if k[:-3] in files), ())
        named = [] if is_blank(entry.get("id")) else [entry["id"]]
        named += [value[0] for value in (shared, *files.values()) if value]
        caption = entry.get("desc") if not is_blank(entry.get("desc")) else entry.get("caption")
        return cls(
            id=repaired(str(named[0])) if named else f"#{index}",
            files=files,
            shared=shared,
            descriptions=descriptions,
            captions=read("caption", _texts, caption, "caption"),
            pairs=read("question", _pairs, entry.get("question"), entry.get("answer")),
            ocr=read("text", _texts, entry.get("text"), "text"),
            turns=read("conversations", _turns, entry.get("conversations")),
            references=read("references", _texts, entry.get("references"), "references"),
            group="" if is_blank(entry.get("group")) else read("group", _string, entry["group"], "group") or "",
            problems=problems,
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
        own = f"{modality}_id"
        if self.shared and own not in self.problems:
            return self.shared
        keys = list(dict.fromkeys((own, *_SHARED)))
        missing = f"names no {modality}: it has none of the keys {', '.join(keys)}"
        raise ValueError(next((self.problems[key] for key in keys if key in self.problems), missing))

    def faults(self, kind: TaskKind, answered: bool = True, files: bool = True) -> list[str]:
        """What the record lacks that a task kind needs, in words.

        Args:
            answered: whether an answer to learn is needed, too. Without one, what is there is compared with.
            files: whether it must name files, below the folder of its media.
        """
        found: list[str | None] = []
        for modality in kind.modalities if files else ():
            try:
                for name in self.files_of(modality):
                    safe_name(name)
            except ValueError as error:
                found.append(str(error))
        found += [self.problems.get(f"{modality}_text") for modality in kind.modalities if modality not in self.files]
        if kind.kind == CAPTION:
            found += self._lacking("caption", bool(self.captions) or not answered, "caption (or desc) with any words")
        elif kind.kind == OCR:
            found += self._lacking("text", bool(self.ocr) or not answered, "text with any words")
        elif kind.asks:
            complete = all(answers for _, answers in self.pairs) or not answered
            found += self._lacking("question", bool(self.pairs), "question with any words")
            found += self._lacking("", complete, "answer with any words")
        elif kind.kind in (*FIRST_PAIR, CONVERSATION):
            complete = len(self.turns) != 1 or not answered
            found += self._lacking("conversations", bool(self.turns), "conversations with at least one turn")
            found += self._lacking("", complete, "an answer in conversations")
        if not answered:
            found += [self.problems.get("references"), self.problems.get("group")]
        return [text for text in found if text]

    def _lacking(self, key: str, there: bool, what: str) -> list[str]:
        if key in self.problems:
            return [self.problems[key]]
        return [] if there else [f"lacks {what}"]

    def check(self, kind: TaskKind, answered: bool = True, files: bool = True) -> None:
        """Raise ValueError for the `faults` of a record."""
        if faults := self.faults(kind, answered, files):
            raise ValueError("; ".join(faults))


def is_blank(value: Any) -> bool:
    """Whether a value of JSON says nothing: null, NaN, infinite, a blank text, or a list of nothing but these."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, list):
        return all(map(is_blank, value))
    return is_missing(value)


def is_missing(value: Any) -> bool:
    """Null, and what stands for it in JSON that tables were written to: NaN, infinity."""
    return value is None or isinstance(value, float) and not isfinite(value)


def _string(value: Any, name: str) -> str:
    """A string; numbers and booleans are written out ("yes"/"no" are for the annotator to write)."""
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, (int, float)) and not is_missing(value):
        return str(value)
    raise ValueError(
        f"'{name}' is missing" if is_missing(value) else f"'{name}' must be text, not {type(value).__name__}"
    )


def _files(value: Any, name: str) -> tuple[str, ...]:
    """Names of files, as they are given: those of a disk need not be text."""
    if is_missing(value):
        return ()
    if is_blank(value):
        raise ValueError(f"'{name}' names no file")
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            raise ValueError(f"'{name}' must be a file name, not {type(item).__name__}")
        if isinstance(item, str) and is_blank(item):
            raise ValueError(f"'{name}' names no file")
    return tuple(map(str, items))


def _texts(value: Any, name: str) -> tuple[str, ...]:
    """The texts of a string or a list; what is blank or missing is left out."""
    if isinstance(value, list):
        return tuple(_string(item, name) for item in value if not is_blank(item))
    return () if is_blank(value) else (_string(value, name),)


def _pairs(question: Any, answer: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if is_blank(question):
        return ()
    if not isinstance(question, list):
        return ((_string(question, "question"), _texts(answer, "answer")),)
    answers = [None] * len(question) if is_blank(answer) and not isinstance(answer, list) else answer
    if not isinstance(answers, list) or len(answers) != len(question):
        count = len(answers) if isinstance(answers, list) else "one"
        raise ValueError(f"'question' lists {len(question)}, but 'answer' has {count}: they must be parallel")
    if any(map(is_blank, question)):
        place = next(number for number, text in enumerate(question) if is_blank(text))
        raise ValueError(f"question[{place}] is missing")
    return tuple((_string(q, "question"), _texts(a, "answer")) for q, a in zip(question, answers, strict=True))


def _turns(entries: Any) -> tuple[tuple[str, str], ...]:
    if is_blank(entries):
        return ()
    if not isinstance(entries, list):
        raise ValueError("'conversations' must be a list of at least one turn")
    turns = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(role := entry.get("from"), str) or role not in _ROLES:
            raise ValueError(f"conversations[{index}] needs 'from': human or gpt, and 'value'")
        if _ROLES[role] != ("human", "assistant")[index % 2]:
            raise ValueError(f"conversations[{index}] is by {role}: turns must alternate, human first")
        turns.append((_ROLES[role], _string(entry.get("value"), f"conversations[{index}].value")))
    return tuple(turns)
