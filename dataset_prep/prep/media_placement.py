"""Finding a sample's media files, looking whether they can be used, and putting them where the runner reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from chatbridge.common.documents import open_regular
from chatbridge.datasets.base import sample_errors
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    ImageConfig,
    ImageProcessor,
    MediaError,
    MediaLoader,
    VideoConfig,
    VideoProcessor,
)
from chatbridge.processors.base import MissingMedia, Source, is_folder, media_errors, name_of, readable
from chatbridge.processors.containers import NO_DECODER, check_whole, decodable, open_container
from chatbridge.processors.picture_files import JPEG_END, MAX_PIXELS, check_size, has_end, jpeg_header, read_rgb
from chatbridge.processors.time_limit import READ_SECONDS, within
from chatbridge.processors.video import frame_names
from dataset_prep.prep.items import MISSING, UNREADABLE, UNSAFE, Drop, Item, PieceResult, UnusableSample
from dataset_prep.prep.job import hash_of

FOLDERS = {"image": "images", "video": "videos", "audio": "audio"}
"""The folder of each modality's files in a prepared corpus."""

CHECKS = ("exists", "header", "decode")
"""How closely media are looked at: there and not empty; header read and length right; read by the processor."""


def processors() -> dict[str, Any]:
    """The processors of the three modalities, at their defaults."""
    return {
        "image": ImageProcessor(ImageConfig()),
        "video": VideoProcessor(VideoConfig()),
        "audio": AudioProcessor(AudioConfig()),
    }


def check_media(modality: str, source: Source, level: str, processor: Any) -> None:
    """Raise MediaError when a file (or blob) fails the check. A folder of frames is checked by its first frame."""
    with media_errors(source):
        if not is_folder(source):
            readable(source)
        if level == "decode":
            processor.load(source)
        elif level == "header" and modality in _HEADERS:
            within(READ_SECONDS, name_of(source), _HEADERS[modality], source)


def _image_header(source: Source) -> None:
    from PIL import Image

    with media_errors(source, "is not a readable picture"):
        with Image.open(readable(source)) as picture:
            jpeg = picture.format == "JPEG"
            check_size(name_of(source), *picture.size, MAX_PIXELS)
            picture.verify()
        if jpeg and not _jpeg_ends(source):
            # Cut off, as a broken download leaves it (then decoding says so), or all there but for the mark itself.
            read_rgb(source, MAX_PIXELS)


def _jpeg_ends(source: Source) -> bool:
    """Whether a JPEG has its end mark, by its last two bytes if these are it."""
    opened = readable(source)
    with open_regular(opened) if isinstance(opened, str) else opened as stream:
        stream.seek(-len(JPEG_END), os.SEEK_END)
        if stream.read() == JPEG_END:
            return True
        stream.seek(0)
        data = stream.read()
    header = jpeg_header(data)
    return header is not None and has_end(data, header)


def _video_header(source: Source) -> None:
    if is_folder(source):
        return _image_header(Path(source) / frame_names(Path(source))[0])
    _track_header(source, "video", "picture")
    return None


def _audio_header(source: Source) -> None:
    _track_header(source, "sound", "sound")


def _track_header(source: Source, what: str, track: str) -> None:
    """Refuse a file that is cut off, or has no track of pictures or of sound that can be decoded."""
    with media_errors(source, f"is not a readable {what}"):
        check_whole(source)
        with open_container(readable(source)) as container:
            tracks = container.streams.video if track == "picture" else container.streams.audio
            if not decodable(tracks):
                raise MediaError(name_of(source), NO_DECODER.format(track) if tracks else f"has no {track} track")


_HEADERS: dict[str, Callable[[Source], None]] = {
    "image": _image_header,
    "video": _video_header,
    "audio": _audio_header,
}


@dataclass
class MediaPlacer:
    """Work of a corpus job: finds every sample's media, checks them, and writes its annotation.

    Attributes:
        roots: modality -> the folder its names are relative to.
        out: the destination; media end up in ``out/images`` and so on.
        check: one of `CHECKS`; place: "link" (the folder is linked as a whole, see `link_folders`) or "copy".
        frames: take this many frames of every video, to ``out/videos/<name>/``, instead of the video itself.
    """

    roots: dict[str, Path]
    out: Path
    check: str = "header"
    place: str = "link"
    frames: int = 0
    size: int = 256
    folders: dict[str, str] = field(default_factory=lambda: dict(FOLDERS))

    @cached_property
    def loader(self) -> MediaLoader:
        return MediaLoader(processors(), self.roots)

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        part = PieceResult(read=len(items))
        for item in items:
            try:
                with sample_errors:
                    names = {modality: self._one(part, modality, item) for modality in item.media}
            except UnusableSample as problem:
                part.dropped.append(Drop(item.id, problem.reason, problem.detail, item.where))
                continue
            except ValueError as error:
                part.dropped.append(Drop(item.id, UNREADABLE, str(error), item.where))
                continue
            keys = {f"{modality}_id": name for modality, name in names.items()}
            part.kept.append({"id": item.id, **keys, **item.entry})
        return part

    def _one(self, part: PieceResult, modality: str, item: Item) -> str:
        """The name of one medium below its folder, checked and in its place."""
        path = self._find(modality, item.media[modality])
        if path.is_dir() and modality != "video":
            raise UnusableSample(UNREADABLE, f"{modality} {path}: is a folder, a file was expected")
        name = path.relative_to(self.roots[modality]).as_posix()
        try:
            if modality == "video" and self.frames:
                from dataset_prep.prep.frames import write_frames

                if not Path(name).stem.strip("."):
                    raise MediaError(name, "has no name that a folder of its frames could have")
                name = str(Path(name).with_suffix("").as_posix())
                target = self.out / self.folders[modality] / name
                write_frames(path, target, self.frames, size=self.size)
                path = target
            else:
                check_media(modality, path, self.check, self.loader.processors[modality])
                if self.place == "copy":
                    copy_file(path, self.out / self.folders[modality] / name)
        except MediaError as error:
            raise UnusableSample(UNREADABLE, f"{modality} {error.source}: {error.reason}") from error
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.iterdir() if f.is_file())
        totals = part.media.setdefault(modality, [0, 0, 0])
        totals[:] = totals[0] + 1, totals[1] + size, totals[2] + hash_of(f"{name}\0{size}")
        return name

    def _find(self, modality: str, names: Iterable[str]) -> Path:
        tried = []
        for name in names:
            try:
                return inside(self.loader.find(modality, name), self.roots[modality])
            except MissingMedia:
                tried.append(name)
            except MediaError as error:
                raise UnusableSample(UNSAFE, f"{modality} {error.source}: {error.reason}") from error
        more = f" (or {', '.join(tried[1:4])}{' ...' if len(tried) > 4 else ''})" if len(tried) > 1 else ""
        raise UnusableSample(MISSING, f"no {modality} {tried[0] if tried else '(no name)'}{more}")


def inside(path: Path, root: Path) -> Path:
    """The path, if it is a file, or a folder of frames, below a media folder also after all links were followed.

    Raises:
        MediaError: it is the folder itself, or leads out of it.
    """
    top, files = os.path.realpath(root), [path, *path.iterdir()] if path.is_dir() else [path]
    for file in files:
        found = os.path.realpath(file)
        if found == top:
            raise MediaError(str(path), "is not a file below its media folder, but that folder")
        if not Path(found).is_relative_to(top):
            raise MediaError(str(file), "is a link that leads out of its media folder")
    return path


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, or the pictures of a folder of frames, unless they are there with the same size and time; never
    leaves half a file."""
    if source.is_dir():
        for file in source.iterdir():
            if file.is_file() and file.suffix.lower() in ImageProcessor.extensions:
                copy_file(file, target / file.name)
        return
    state = source.stat()
    if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    shutil.copy2(source, temporary)
    os.replace(temporary, target)


def link_folder(source: Path, link: Path) -> None:
    """Make `link` point to a folder; nothing is copied.

    Raises:
        ValueError: when something else stands there, or the file system knows no links.
    """
    source = source.resolve()
    if link.is_symlink() or link.exists():
        if link.resolve() == source:
            return
        raise ValueError(f"{link} exists and is not {source}; remove it, or take another --out")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError as error:
        raise ValueError(f"{link} cannot be linked to {source} ({error.strerror}); use --place copy") from error


def index_by_stem(root: Path, extensions: Iterable[str]) -> dict[str, str]:
    """Stem -> file name relative to `root`, of every file below it with one of the endings.

    Archives of sound collections unpack into folders of their maker's; the stem is what annotations know.
    Of two files with the same stem the first in name order counts.
    """
    wanted, found = set(extensions), {}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(files):
            stem, ending = os.path.splitext(name)
            if ending.lower() in wanted:
                found.setdefault(stem, Path(os.path.relpath(os.path.join(folder, name), root)).as_posix())
    return found
