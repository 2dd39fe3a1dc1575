"""Fetching published weights: once, into a cache, going on where a broken download stopped."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from tqdm import tqdm

from chatbridge.common.checksums import sha256 as digest_of
from chatbridge.common.documents import DocumentError, read_json
from chatbridge.weights.files import WeightsError
from chatbridge.weights.manifest import PublishedWeights

CHUNK = 2**20


def cache_folder() -> Path:
    """``$CHATBRIDGE_CACHE``, or ``chatbridge`` below the user's cache folder."""
    given = os.environ.get("CHATBRIDGE_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or Path(root) / "chatbridge").expanduser()


def fetch(entry: PublishedWeights, folder: str | Path | None = None, attempts: int = 5) -> Path:
    """The weights of a manifest entry, fetched unless they are there already.

    Args:
        folder: also put them here, under the entry's `save_as` (a link where the disk allows it).

    Raises:
        WeightsError: when they cannot be reached or are to be fetched by hand, saying what to put where.
    """
    wanted = Path(folder) / entry.save_as if folder else None
    if wanted is not None and wanted.exists():
        return wanted
    if entry.page:
        place = wanted or cache_folder() / entry.save_as
        raise WeightsError(
            f"{entry.name} has to be fetched by hand: get {entry.save_as} from {entry.page} and put it at {place}"
        )
    if entry.hub:
        return _from_hub(entry, wanted)
    found = download(entry.url, cache_folder() / entry.save_as, entry.bytes, entry.sha256, entry.size, attempts)
    if wanted is None:
        return found
    wanted.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(found, wanted)
    except OSError:
        shutil.copyfile(found, wanted)
    return wanted


def _from_hub(entry: PublishedWeights, wanted: Path | None) -> Path:
    try:
        if entry.file:
            found = Path(huggingface_hub.hf_hub_download(entry.hub, entry.file))
            if wanted is None:
                return found
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, wanted)
            return wanted
        return Path(huggingface_hub.snapshot_download(entry.hub, local_dir=wanted))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        what = f"{entry.hub} {entry.file}" if entry.file else entry.hub
        raise WeightsError(
            f"cannot fetch {entry.name} ({type(error).__name__}); on a machine with network: hf download {what} "
            f"({entry.size}), and put the result at {wanted or entry.save_as}"
        ) from None


def download(
    url: str,
    target: Path,
    size: int | None = None,
    sha256: str | None = None,
    size_text: str = "size unknown",
    attempts: int = 5,
    wait: float = 1.0,
) -> Path:
    """Fetch `url` to `target`, going on where an earlier try stopped.

    What has arrived is kept beside the target as ``.part`` until it is whole; two processes wait for each other.

    Args:
        size, sha256: what the file must have, where that is known. size_text: its size, for messages.
        attempts: how often a broken connection is taken up again; wait: before the second one [s], doubled each time.

    Raises:
        WeightsError: when it cannot be reached, stays incomplete, or is not the file it should be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.with_name(part.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return _checked(target, size, sha256, url)
        for attempt in range(attempts):
            if attempt:
                time.sleep(wait * 2 ** (attempt - 1))
            try:
                total = _go_on(url, part, size)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise WeightsError(f"{url} answers {error.code} {error.reason}; has it moved?") from None
                reason = f"{error.code} {error.reason}"
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, OSError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            have = part.stat().st_size if part.exists() else 0
            kept = f"; {have:,} bytes are kept at {part}, a further try goes on from there" if have else ""
            raise WeightsError(
                f"cannot fetch {url} ({reason}){kept}; or fetch it on a machine with network ({size_text}) "
                f"and put it at {target}"
            )
        _checked(part, size or total, sha256, url)
        part.rename(target)
        _note(part).unlink(missing_ok=True)
    return target


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _tag(part: Path) -> str | None:
    """What the server called the version that has arrived in part; None where that is not known."""
    try:
        note = read_json(_note(part))
    except DocumentError:
        return None
    tag = note.get("tag") if isinstance(note, dict) else None
    return tag if isinstance(tag, str) else None


def _go_on(url: str, part: Path, size: int | None) -> int:
    """One connection: what is still missing is appended. Returns the whole size; raises when the stream breaks."""
    have = part.stat().st_size if part.exists() else 0
    tag = _tag(part) if have else None
    request = urllib.request.Request(url)
    if have and tag:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)  # another version of the file is sent whole
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        total = int((error.headers.get("Content-Range") or "*/-1").rpartition("/")[2])
        if total != have:
            part.unlink()
            raise ConnectionError("what had arrived was longer than the file; starting anew") from None
        return have
    with response:
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else size
        _note(part).write_text(json.dumps({"tag": response.headers.get("ETag"), "url": url}))
        _need_room(part, (total or have) - have)
        with part.open("ab" if have else "wb") as file, tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, mininterval=1.0
        ) as bar:  # fmt: skip
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")
    return have


def _need_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise WeightsError(f"'{part.parent}' has {free:,} bytes free, {needed:,} are needed; make room")


def _checked(file: Path, size: int | None, sha256: str | None, url: str) -> Path:
    have = file.stat().st_size
    if size is not None and have != size:
        raise WeightsError(f"'{file}' has {have:,} bytes, {url} has {size:,}; remove it and fetch it again")
    if sha256 is not None and digest_of(file) != sha256:
        raise WeightsError(f"'{file}' is not what {url} should be: its SHA-256 differs; remove it and fetch it again")
    return file
