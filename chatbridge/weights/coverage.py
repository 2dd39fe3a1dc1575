"""What a file fills of a model: the one comparison behind ``inspect`` and every load of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from chatbridge.weights.files import WeightsError, WeightSource, shorten


@dataclass(frozen=True)
class Target:
    """A place to fill: a tensor, or that of each bridge that has its own; `fit` brings a file's to its shape."""

    places: list[Tensor]
    fit: Callable[[Tensor], Tensor] | None = None

    def fitted(self, tensor: Tensor) -> Tensor:
        if self.fit is None or tensor.shape == self.places[0].shape:
            return tensor
        return self.fit(tensor)


@dataclass
class NameMapping:
    """A file's names, read as one of the known formats.

    Attributes:
        kind: title of the format. slot: title of the part of a model that it is for.
        names: name in the file -> name of the target.
        ignored: names on the format's allow-list -> the pattern that allows them.
        copies: name in the file -> the name of the tensor there that it must equal.
        optional: prefixes of targets that a file of this format may leave out, each as a whole.
        problems: what is wrong with the file whatever the names say.
    """

    kind: str
    slot: str
    names: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)


@dataclass
class Coverage:
    """How far a file fills its slot.

    Attributes:
        tensors, parameters: (filled, all) of the slot; those that may be left out and are, are not counted.
        kept: targets that stay as they are, because the format may leave them out.
        missing, unexpected, mismatched: what is wrong, a line each. problems: anything else that is.
    """

    path: str
    kind: str
    slot: str
    container: str = ""
    bytes: int = 0
    file_tensors: int = 0
    tensors: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verdict: str = "does not fit this architecture"

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched or self.problems)

    @property
    def complaint(self) -> str:
        """All that is wrong, in one line; empty when nothing is."""
        named = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.mismatched))
        lists = [f"{label} ({len(names)}): {shorten(names)}" for label, names in named if names]
        return "; ".join(self.problems + lists)

    def require(self, what: str) -> Coverage:
        """Raise WeightsError, naming `what` and everything that is wrong, unless the file fits."""
        if not self.ok:
            raise WeightsError(f"{what} {self.verdict}: {self.complaint}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path, "ok": self.ok, "format": self.kind, "container": self.container,
            "bytes": self.bytes, "tensors_in_file": self.file_tensors, "fills": self.slot,
            "tensors": _share(*self.tensors), "parameters": _share(*self.parameters), "missing": self.missing,
            "unexpected": self.unexpected, "mismatched": self.mismatched, "ignored": sorted(self.ignored),
            "kept": self.kept, "problems": self.problems,
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        size = f"{self.container}, {self.bytes / 1e6:,.1f} MB, {self.file_tensors} tensors" if self.container else ""
        lines = [self.path, f"  is          {self.kind}" + (f" ({size})" if size else "")]
        if self.tensors[1]:
            (have, all_), (have_p, all_p) = self.tensors, self.parameters
            lines.append(f"  fills       {self.slot}")
            lines.append(f"  tensors     {have:,} of {all_:,} ({_percent(have, all_)} %)")
            lines.append(f"  parameters  {have_p:,} of {all_p:,} ({_percent(have_p, all_p)} %)")
        patterns = sorted(set(self.ignored.values()))
        for pattern in patterns:
            lines.append(f"  ignored     {list(self.ignored.values()).count(pattern)} by name: {pattern}")
        if self.kept:
            lines.append(f"  kept        {len(self.kept)} tensors stay as they are: {shorten(_parts(self.kept), 6)}")
        for label, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mismatched", self.mismatched),
        ):
            if names:
                lines.append(f"  {label:<11} {len(names)}: {shorten(names)}")
        lines += [f"  problem     {problem}" for problem in self.problems]
        lines.append("  ok" if self.ok else "  does not load")
        return "\n".join(lines)


def allowed(name: str, patterns: Iterable[str]) -> str | None:
    """The pattern that lets a tensor of this name be left out."""
    return next((pattern for pattern in patterns if re.fullmatch(pattern, name)), None)


def compare(mapping: NameMapping, source: WeightSource, targets: Mapping[str, Target]) -> Coverage:
    """What loading `source` as `mapping` says into `targets` would do. Nothing but shapes is looked at."""
    result = Coverage(str(source.path), mapping.kind, mapping.slot, source.container, source.bytes)
    result.file_tensors = len(source.tensors)
    result.ignored, result.problems = dict(mapping.ignored), list(mapping.problems)
    given = {target: name for name, target in mapping.names.items()}
    for target, name in given.items():
        if target not in targets:
            result.unexpected.append(name)
    aliases: dict[int, list[str]] = {}
    for target, slot in targets.items():
        aliases.setdefault(id(slot.places[0]), []).append(target)
    begun = {prefix for prefix in mapping.optional if any(target.startswith(prefix) for target in given)}
    filled = filled_parameters = absent = absent_parameters = 0
    for names in aliases.values():
        size = targets[names[0]].places[0].numel()
        present = [name for name in names if name in given]
        if not present and _may_go_without(names[0], mapping.optional, begun):
            result.kept.append(names[0])
            continue
        fits = [_mismatch(given[name], source, targets[name]) for name in present]
        if present and not any(fits):
            filled, filled_parameters = filled + 1, filled_parameters + size
            continue
        absent, absent_parameters = absent + 1, absent_parameters + size
        if present:
            result.mismatched += [line for line in fits if line]
        else:
            result.missing.append(names[0])
    result.tensors = (filled, filled + absent)
    result.parameters = (filled_parameters, filled_parameters + absent_parameters)
    return result


def _may_go_without(name: str, optional: tuple[str, ...], begun: set[str]) -> bool:
    """Whether a part that the format may leave out covers this name, and nothing of that part is given."""
    return any(name.startswith(prefix) and prefix not in begun for prefix in optional)


def _mismatch(name: str, source: WeightSource, target: Target) -> str:
    given, needed = source.tensors[name], target.places[0]
    try:
        shape = target.fitted(given).shape
    except ValueError as error:
        return f"{name}: {error}"
    return "" if shape == needed.shape else f"{name} {list(given.shape)} where {list(needed.shape)} is needed"


def _percent(part: int, whole: int) -> str:
    """Never rounded up to 100."""
    return f"{int(10000 * part / whole) / 100:.2f}" if whole else "0.00"


def _share(part: int, whole: int) -> dict[str, Any]:
    return {"filled": part, "of": whole, "percent": float(_percent(part, whole))}


def _parts(names: list[str]) -> list[str]:
    """The names cut to the parts that they belong to."""
    return list(dict.fromkeys(".".join(name.split(".")[:3]) if "." in name else name for name in names))
