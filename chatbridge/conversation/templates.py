"""Templates: what the human says for a task kind, as many per kind as the original's task_prompt.json has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chatbridge.common.documents import DocumentError, read_yaml

QUESTION = "<QUESTION>"
"""Where a template takes the sample's question."""

_MEDIA = "{media}"
_BUILT_IN = Path(__file__).with_name("templates.yaml")


class Templates:
    """Lists of templates by task name, and general ones by kind for every other set of modalities.

    Args:
        by_task: "ti-cap" -> templates.
        generic: kind -> templates in which ``{media}`` takes the modalities' names.
    """

    def __init__(self, by_task: Mapping[str, Sequence[str]], generic: Mapping[str, Sequence[str]] | None = None):
        self.by_task = {name: tuple(items) for name, items in by_task.items()}
        self.generic = {kind: tuple(items) for kind, items in (generic or {}).items()}

    @classmethod
    def load(cls, *files: str | Path) -> Templates:
        """The built-in templates, with whole lists replaced or added by the user's files, in order.

        Raises:
            ValueError: an unreadable file, a list that is empty or not of strings, a QA template without
                ``<QUESTION>``, or another one with it.
        """
        by_task: dict[str, list[str]] = {}
        generic: dict[str, list[str]] = {}
        for file in (_BUILT_IN, *files):
            data = _read(Path(file))
            generic |= _checked(file, data.pop("generic", None) or {}, "generic.")
            by_task |= _checked(file, data)
        return cls(by_task, generic)

    def choices(self, task: str, kind: str, names: Sequence[str] = ()) -> tuple[str, ...]:
        """The templates of a task.

        Args:
            task: its full name ("ta-shortqa"), looked up first.
            kind: what follows the modalities ("shortqa"), looked up next; every other kind of question falls back to
                "normalqa".
            names: the modalities' names, for ``{media}``; without any, a question stands for itself.

        Raises:
            ValueError: when there are none.
        """
        if task in self.by_task:
            return self.by_task[task]
        if not names and kind.endswith("qa"):
            return (QUESTION,)
        found = self.generic.get(kind) or (self.generic.get("normalqa") if kind.endswith("qa") else None)
        if found and names:
            media = " and ".join(names)
            return tuple(text.replace(_MEDIA, media) for text in found)
        known = ", ".join(sorted({*self.by_task, *self.generic}))
        raise ValueError(f"no templates for task '{task}', only for: {known}; add a list of them to a template file")


def _read(file: Path) -> dict:
    data = read_yaml(file)
    if not isinstance(data, dict):
        raise DocumentError(file, "a template file must be a mapping of task names to lists of templates")
    return {str(task): lists for task, lists in data.items()}


def _checked(file: str | Path, lists: Mapping[str, object], where: str = "") -> dict[str, list[str]]:
    if not isinstance(lists, Mapping):
        raise ValueError(f"{file}: '{where[:-1]}' must be a mapping of kinds to lists of templates")
    for name, items in lists.items():
        if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
            raise ValueError(f"{file}: '{where}{name}' must be a list of at least one template (strings)")
        asks = str(name).endswith("qa")
        for item in items:
            if asks != (QUESTION in item):
                wanted = "needs" if asks else "cannot have"
                raise ValueError(f"{file}: '{where}{name}' {wanted} {QUESTION}: {item!r}")
    return dict(lists)
