"""From a record's references ("image": "0001.jpg") to tensors: finds the files, keeps inside their folders."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch import Tensor

from chatbridge.common.batch import RawMedia
from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.contracts import Processor
from chatbridge.processors.base import ArchiveMember, Blob, MediaError, MissingMedia, media_errors

SUSPECT = re.compile(r"^[./\\]*$|^[/\\]|\.\.|[\0:]")
"""What a file name that leaves its folder, or means the folder itself, has at least one of."""


class MediaLoader:
    """Loads media of several modalities by name, each from its own folder.

    Args:
        processors: modality -> its processor.
        roots: modality -> the folder that its references are relative to.
        cache_bytes: memory for tensors loaded under the evaluation rules (they never change); the least recently
            used go first. 0 keeps none. Every data-loader worker has a cache of its own.

    Raises:
        ValueError: for a folder of a modality that no processor is given for.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        roots: Mapping[str, str | Path],
        cache_bytes: int = 0,
    ):
        unknown = sorted(set(roots) - set(processors))
        if unknown:
            raise ValueError(
                f"media folders are given for {', '.join(unknown)}, but processors only for "
                f"{', '.join(sorted(processors)) or 'nothing'}; add a processor or remove the folder"
            )
        self.processors = dict(processors)
        self.roots = {modality: Path(root) for modality, root in roots.items()}
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[str, str | ArchiveMember], Tensor] = OrderedDict()
        self._cached = 0

    def load(self, modality: str, file: str | ArchiveMember, mode: ReadMode = EVALUATION) -> Tensor | RawMedia:
        """One medium as [T, ...]. Do not write to the tensor: it may be cached.

        Raises:
            MediaError: when the file is missing, outside its folder, or cannot be used.
            ValueError: when no processor or folder is given for the modality.
        """
        if isinstance(mode, Training) or not self.cache_bytes:
            return self._load(modality, file, mode)
        where = (modality, file)
        if where in self._cache:
            self._cache.move_to_end(where)
            return self._cache[where]
        tensor = self._load(modality, file, mode)
        size = tensor.numel() * tensor.element_size()
        if size <= self.cache_bytes:
            self._cache[where] = tensor
            self._cached += size
        while self._cached > self.cache_bytes:
            _, old = self._cache.popitem(last=False)
            self._cached -= old.numel() * old.element_size()
        return tensor

    def blank(self, modality: str) -> Tensor:
        """The modality's empty medium (black, silent), for ablations."""
        return self._processor(modality).blank()

    def find(self, modality: str, name: str | ArchiveMember) -> Path:
        """The file or folder of frames that a reference means; of a member, its name in its archive.

        Tried in turn: the name as it is; with each ending of the processor added; with its own ending, if it has
        a media ending, replaced by each (annotation files often name ``clip7.mp4`` for the sound ``clip7.wav``).

        Raises:
            MediaError: when none exists, or the reference could leave its folder.
        """
        if isinstance(name, ArchiveMember):
            return Path(name.name)
        processor = self._processor(modality)
        if modality not in self.roots:
            raise ValueError(f"no media folder is given for '{modality}' (given: {', '.join(sorted(self.roots))})")
        root = self.roots[modality]
        path = root / safe_name(name)
        if os.path.exists(path):
            return path
        endings = self._endings(processor)
        stems = [path.name]
        if path.suffix.lower() in {ending for p in self.processors.values() for ending in p.extensions}:
            stems.append(path.stem)
        for stem in stems:
            for ending in endings:
                candidate = path.with_name(stem + ending)
                if os.path.exists(candidate):  # and not Path.exists, which raises for names that are too long
                    return candidate
        tried = " ".join(processor.extensions)
        raise MissingMedia(name, f"no such {modality} in {root} (tried the name itself and the endings {tried})")

    def _load(self, modality: str, file: str | ArchiveMember, mode: ReadMode) -> Tensor | RawMedia:
        """What the processor makes of a file; whatever it raises, a plugin's included, is a MediaError."""
        processor = self._processor(modality)
        source = Blob(file.name, file.read()) if isinstance(file, ArchiveMember) else self.find(modality, file)
        with media_errors(source):
            return processor.load(source, mode)

    def _processor(self, modality: str) -> Processor:
        if modality not in self.processors:
            known = ", ".join(sorted(self.processors)) or "none"
            raise ValueError(f"no processor is given for modality '{modality}' (given: {known})")
        return self.processors[modality]

    @staticmethod
    def _endings(processor: Processor) -> list[str]:
        return [form for ending in processor.extensions for form in (ending, ending.upper())]


def safe_name(name: str) -> str:
    """The reference, if it stays below the folder it is relative to, on any system. Raises MediaError if not."""
    if not SUSPECT.search(name):  # taking it apart takes longer than reading an annotation entry
        return name
    parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
    if not parts or "\0" in name or ".." in parts or name.startswith("/") or PureWindowsPath(name).anchor:
        raise MediaError(repr(name), "is not a file name below its media folder (no '..', no absolute path)")
    return name
