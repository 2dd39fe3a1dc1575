"""Task kinds: which modalities a dataset shows, and what it asks about them.

Written ``ti-cap``, ``tva-conv``, ``ta-shortqa`` as in the original's data configurations, ``thermal-cap`` or
``video+thermal-conv`` for any other modality. The name is parsed, never searched for substrings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from chatbridge.common.registry import nearest

PREFIXES = {
    "t": (),
    "ti": ("image",),
    "tv": ("video",),
    "ta": ("audio",),
    "tva": ("video", "audio"),
    "tia": ("image", "audio"),
}
"""The original's short names for sets of modalities ("t" is text alone), in the order they are shown."""

CAPTION, OCR, CONVERSATION = "cap", "ocr", "conv"
FIRST_PAIR = ("det", "rea")
KINDS = (CAPTION, "shortqa", "normalqa", OCR, *FIRST_PAIR, CONVERSATION)
"""Kinds with templates or turns of their own; any other word that ends in "qa" is a kind of question, too."""

_QUESTION_KIND = re.compile(r"[a-z]*qa")


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """What a sample shows and what is asked.

    Attributes:
        modalities: what is shown, in this order; empty for text alone.
        kind: cap, ocr, det, rea, conv, or a kind of question: shortqa, normalqa, ...qa.
    """

    modalities: tuple[str, ...] = ()
    kind: str = CAPTION

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not _QUESTION_KIND.fullmatch(self.kind):
            raise ValueError(f"there is no task kind '{self.kind}'; {nearest(self.kind, list(KINDS))}")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"a task kind names each modality once, not {list(self.modalities)}")
        if not self.modalities and self.kind in (CAPTION, OCR):
            raise ValueError(f"'{self.kind}' without a modality: there is nothing to look at or listen to")

    @property
    def prefix(self) -> str:
        """The short name of its modalities: "tva", or "video+thermal" where there is none."""
        for prefix, modalities in PREFIXES.items():
            if modalities == tuple(self.modalities):
                return prefix
        return "+".join(self.modalities)

    @property
    def name(self) -> str:
        """The full name, by which templates are looked up: "tva-cap"."""
        return f"{self.prefix}-{self.kind}"

    @property
    def asks(self) -> bool:
        """Whether it is a kind of question with an answer (as opposed to captions, OCR and conversations)."""
        return self.kind.endswith("qa")

    @classmethod
    def parse(cls, text: str, known: Iterable[str] = ("image", "video", "audio")) -> TaskKind:
        """A task kind from its name: "ti-cap", "thermal-cap".

        Args:
            known: the modalities that exist, those the model has bridges for, say.

        Raises:
            ValueError: anything else, with the nearest known name.
        """
        prefix, dash, kind = text.rpartition("-")
        if not dash:
            raise ValueError(f"task '{text}' is not of the form <modalities>-<kind>, such as 'ti-cap' or 'ta-shortqa'")
        if prefix in PREFIXES:
            return cls(modalities=PREFIXES[prefix], kind=kind)
        names = set(known)
        modalities = tuple(prefix.split("+"))
        for modality in modalities:
            if modality not in names:
                raise ValueError(
                    f"task '{text}' names the modality '{modality}'; {nearest(modality, [*PREFIXES, *names])}"
                )
        return cls(modalities=modalities, kind=kind)

    @classmethod
    def parse_all(cls, text: str, known: Iterable[str] = ("image", "video", "audio")) -> tuple[TaskKind, ...]:
        """The kinds of a dataset: several may be joined by ``%``, one of which is then drawn per sample."""
        return tuple(cls.parse(part, known) for part in text.split("%"))
