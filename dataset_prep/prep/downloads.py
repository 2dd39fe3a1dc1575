"""What img2dataset and video2dataset leave behind: numbered folders of files, with a table of what became of each link.

``00000/000000000.jpg`` with ``.txt`` and ``.json`` beside it, ``00000.parquet`` with a row per link (key, caption,
status, error_message); or tars of the same, see `dataset_prep.prep.tars`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_prep.prep.items import DEAD_LINK, EMPTY, MALFORMED, Drop, Item
from dataset_prep.prep.tables import column, count, load_json, rows, text
from dataset_prep.prep.texts import captions, one_or_list

CAPTION_COLUMNS = ("caption", "text", "title", "name")
FILE_COLUMNS = ("image", "image_path", "image_id", "file_name", "filename", "file", "path", "filepath", "key")
URL_COLUMNS = ("url", "image_url", "contenturl")


def is_download(folder: Path) -> bool:
    """Whether a folder looks like a downloader's: numbered folders inside."""
    return folder.is_dir() and any(p.is_dir() and p.name.isdigit() for p in folder.iterdir())


def download_items(folder: Path, modality: str) -> Iterator[Item | Drop]:
    """The samples of a downloader's folder; links that failed are Drops."""
    for shard in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
        table = folder / f"{shard.name}.parquet"
        if table.exists():
            for index, row in rows(table):
                yield _downloaded(row, shard.name, modality, f"{table.name}: row {index}")
        else:
            for sidecar in sorted(_sidecars(shard)):
                where = f"{shard.name}/{sidecar.name}"
                try:
                    row = load_json(sidecar)
                except ValueError as error:
                    yield Drop(sidecar.stem, MALFORMED, str(error), where)
                    continue
                row = {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else {}
                yield _downloaded({"key": sidecar.stem, **row}, shard.name, modality, where)


def count_downloads(folder: Path) -> int:
    """How many samples `download_items` gives."""
    total = 0
    for shard in (p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
        table = folder / f"{shard.name}.parquet"
        total += count(table) if table.exists() else sum(1 for _ in _sidecars(shard))
    return total


def _sidecars(shard: Path) -> Iterator[Path]:
    """The ``.json`` of every sample (macOS leaves a ``._x.json`` beside an x.json)."""
    return (file for file in shard.glob("*.json") if not file.name.startswith("."))


def _downloaded(row: dict[str, Any], shard: str, modality: str, where: str) -> Item | Drop:
    key, status = text(row, "key"), text(row, "status")
    if status and status != "success":
        return Drop(key, DEAD_LINK, text(row, "error_message") or status, where)
    if not key:
        return Drop("", MALFORMED, "has no key", where)
    return captioned(key, row, {modality: (f"{shard}/{key}",)}, where)


def captioned(key: str, row: dict[str, Any], media: dict[str, tuple[str, ...]], where: str) -> Item | Drop:
    """A sample with the caption of a table's row, or the reason why it has none."""
    try:
        texts = captions(column(row, CAPTION_COLUMNS))
    except ValueError as error:
        return Drop(key, MALFORMED, str(error), where)
    if not texts:
        return Drop(key, EMPTY, "", where)
    return Item(key, {"caption": one_or_list(texts)}, media, where)


def table_items(path: Path, modality: str, file_column: str | None = None) -> Iterator[Item | Drop]:
    """The samples of a table whose rows name their files.

    Raises:
        ValueError: when the table has no column that names files.
    """
    names = (file_column,) if file_column else FILE_COLUMNS
    for index, row in rows(path):
        where = f"{path.name}: row {index}"
        if not isinstance(row, dict) or "" in row:
            why = row.get("") if isinstance(row, dict) else f"is {type(row).__name__}, not an object"
            yield Drop("", MALFORMED, str(why), where)
            continue
        name = text(row, *names)
        if index == 0 and not {name.lower() for name in names} & {str(key).strip().lower() for key in row}:
            raise ValueError(
                f"{path}: no column names the files (columns: {', '.join(map(str, row))}; looked for "
                f"{', '.join(names)}); name it with --file-column, or give the folder that the downloader wrote"
            )
        if not name:
            yield Drop(text(row, "id"), MALFORMED, "names no file", where)
            continue
        yield captioned(name, row, {modality: (name,)}, where)
