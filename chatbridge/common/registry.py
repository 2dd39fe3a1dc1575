"""Named parts, assembled from YAML.

A part is registered where it is defined, by decorator, together with the dataclass that types its
configuration; a YAML node ``{name: eva_vit, depth: 39}`` then becomes ``EvaViT(EvaViTConfig(depth=39))``.
Nothing is imported behind the reader's back: `chatbridge.register_all` imports the built-in parts, and
``plugins:`` in a YAML imports the user's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

COMPAT, DEFAULT = "compat", "default"
"""The key of a YAML node that chooses among a part's variants, and what it is where the node does not say."""


@dataclass(frozen=True)
class RegistryEntry:
    """One registered part: the class or function, and the dataclass of its YAML keys (or None).

    Attributes:
        variants: value of `COMPAT` -> what then takes this part's place.
        compat, help: of a variant, its value of `COMPAT` and what is other with it.
    """

    name: str
    target: Any
    config: type | None
    variants: dict[str, RegistryEntry] = field(default_factory=dict)
    compat: str = DEFAULT
    help: str = ""


def nearest(name: str, known: list[str]) -> str:
    """A hint for an error message: the known name closest to `name`, else all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + (", ".join(sorted(known)) or "none")


class Registry:
    """A table of parts of one kind. A name taken twice is an error.

    Args:
        kind: what messages call such a part. tag: the key of a YAML node that holds its name.
        usual: the name where a node has none.
    """

    def __init__(self, kind: str, tag: str = "name", usual: str | None = None):
        self.kind, self.tag, self.usual = kind, tag, usual
        self._entries: dict[str, RegistryEntry] = {}

    def register(self, name: str, config: type | None = None) -> Callable[[Any], Any]:
        """Decorator: enter the class or function below it under `name`.

        Raises:
            ValueError: when the name is taken by a part of another definition.
        """

        def enter(target: Any) -> Any:
            taken = self._entries.get(name)
            if taken is not None:
                raise ValueError(
                    f"{self.kind} '{name}' is registered twice: by {_where(taken.target)} and by {_where(target)}; "
                    "choose another name for one of them"
                )
            self._entries[name] = RegistryEntry(name, target, config)
            return target

        return enter

    def variant(self, name: str, compat: str, config: type, help: str) -> Callable[[Any], Any]:
        """Decorator: enter the class below it as what `name` means where its node has ``compat: <compat>``.

        Args:
            config: a dataclass of the same keys, by which `build` knows the variant: `name`'s own, subclassed.
            help: what is other with it, for the reference.
        """

        def enter(target: Any) -> Any:
            self.get(name).variants[compat] = RegistryEntry(name, target, config, compat=compat, help=help)
            return target

        return enter

    def get(self, name: str) -> RegistryEntry:
        """The part of that name. Raises ValueError, with the nearest known name, when there is none."""
        if not self._entries:
            raise ValueError(f"no {self.kind} is registered yet (asked for '{name}'); call chatbridge.register_all()")
        if name not in self._entries:
            raise ValueError(f"no {self.kind} is called '{name}'; {nearest(name, list(self._entries))}")
        return self._entries[name]

    def configured(self, name: str | list[str]) -> Any:
        """The configuration of the part of that name, every key at its default; of a list of names, a list."""
        if isinstance(name, list):
            return [self.configured(one) for one in name]
        entry = self.get(name)
        return entry.target if entry.config is None else entry.config()

    def build(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        """Make the part that a typed configuration belongs to: ``target(config, *args, **kwargs)``.

        The configuration of a part without keys is the part itself (`Binder.component`): ``target(*args, **kwargs)``.
        """
        entry = self._entry_of(config)
        return entry.target(*args, **kwargs) if entry.config is None else entry.target(config, *args, **kwargs)

    def target_of(self, config: Any) -> Any:
        """The class (or function) that a typed configuration belongs to."""
        return self._entry_of(config).target

    def name_of(self, config: Any) -> str:
        """The registered name whose configuration dataclass this object is an instance of."""
        return self._entry_of(config).name

    def node_of(self, config: Any) -> dict[str, str]:
        """What a YAML node says to name the part (and variant) that a typed configuration belongs to."""
        entry = self._entry_of(config)
        return {self.tag: entry.name, **({COMPAT: entry.compat} if self.get(entry.name).variants else {})}

    def _entry_of(self, config: Any) -> RegistryEntry:
        for named in self._entries.values():
            for entry in (named, *named.variants.values()):
                if entry.target is config if entry.config is None else entry.config is type(config):
                    return entry
        raise ValueError(f"no {self.kind} takes a {type(config).__name__}")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def _where(target: Any) -> str:
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', target)}"


ENCODERS = Registry("encoder")
PROJECTORS = Registry("projector", usual="qformer")
LLMS = Registry("language model", usual="causal_lm")
MODELS = Registry("model", tag="arch", usual="chatbridge")
PROCESSORS = Registry("processor")
DATASETS = Registry("dataset builder", tag="builder", usual="annotations")
TASKS = Registry("task")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("learning-rate schedule")
LOGGERS = Registry("logger")
METRICS = Registry("metric")
RUNNERS = Registry("runner", tag="runner", usual="training")


def registries() -> list[Registry]:
    """All of the above."""
    return [value for value in globals().values() if isinstance(value, Registry)]
