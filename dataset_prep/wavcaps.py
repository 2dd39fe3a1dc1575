"""WavCaps: audio-text pairs for stage 1, from its four sources.

SOURCE is the folder that holds json_files/ (AudioSet_SL/as_final.json, BBC_Sound_Effects/bbc_final.json,
FreeSound/fsd_final.json, SoundBible/sb_final.json). Sounds are looked for anywhere below --media, in a folder named
after their source where there is one: the archives unpack into deep folders, and only file stems tell the sounds.
Every source becomes a dataset of its own: DEST/audioset_sl, bbc, freesound and soundbible.

  python -m dataset_prep.wavcaps WavCaps --media WavCaps/audio --out data
"""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chatbridge.common.documents import open_regular
from chatbridge.processors import AudioProcessor
from dataset_prep.prep.command import make_parser, media_root, prepare, run_command
from dataset_prep.prep.downloads import captioned
from dataset_prep.prep.items import MALFORMED, Drop, Item
from dataset_prep.prep.media_placement import index_by_stem
from dataset_prep.prep.tables import count, load_json, rows, text

KIND = "ta-cap"
EXCLUDED = "on the exclusion list"

SOURCES = {
    "audioset_sl": ("AudioSet_SL", "as_final.json"),
    "bbc": ("BBC_Sound_Effects", "bbc_final.json"),
    "freesound": ("FreeSound", "fsd_final.json"),
    "soundbible": ("SoundBible", "sb_final.json"),
}
"""Dataset -> (the source's folder, its file in json_files/<folder>/)."""


def stem_of(name: str) -> str:
    """The stem that a WavCaps id or file name means: AudioSet's ids end in .wav, FreeSound's are numbers."""
    base = name.rpartition("/")[2]
    stem, dot, ending = base.rpartition(".")
    return stem if dot and f".{ending.lower()}" in AudioProcessor.extensions else base


def wavcaps_items(file: Path, index: dict[str, str], excluded: frozenset[str]) -> Iterator[Item | Drop]:
    """One sample per entry of one source's file.

    Args:
        index: stem -> file name, as `index_by_stem` finds them.
        excluded: stems that must stay out (sounds of evaluation sets).
    """
    for number, entry in rows(file, "data" if _is_object(file) else None):
        where = f"{file.name}: entry {number}"
        sound = text(entry, "id", "audio")
        if not sound:
            yield Drop("", MALFORMED, "has neither id nor audio", where)
            continue
        stem = stem_of(sound)
        if stem in excluded:
            yield Drop(stem, EXCLUDED, "", where)
            continue
        yield captioned(stem, {"caption": entry.get("caption")}, {"audio": (index.get(stem, stem),)}, where)


def _is_object(file: Path) -> bool:
    with open_regular(file) as stream:
        return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def exclusion_list(files: list[Path]) -> dict[str, frozenset[str]]:
    """Source folder -> stems, from WavCaps' blacklist files ({"AudioSet": [...], "FreeSound": [...]}).

    Raises:
        ValueError: a file of another form.
    """
    found: dict[str, set[str]] = {}
    for file in files:
        tree = load_json(file)
        if not isinstance(tree, dict) or not all(isinstance(names, list) for names in tree.values()):
            raise ValueError(f"{file}: an exclusion list is an object of lists, such as {{'FreeSound': [...]}}")
        for source, names in tree.items():
            folder = {"AudioSet": "AudioSet_SL", "BBC": "BBC_Sound_Effects"}.get(source, source)
            found.setdefault(folder, set()).update(stem_of(str(name)) for name in names)
    return {folder: frozenset(stems) for folder, stems in found.items()}


def body(args: argparse.Namespace) -> None:
    metadata = args.source / "json_files" if (args.source / "json_files").is_dir() else args.source
    media = media_root(args.media, args.source / "audio", args.source / "Zip_files", args.source)
    excluded = exclusion_list(args.exclude)
    wanted = args.sources.split(",") if args.sources else list(SOURCES)
    unknown = [name for name in wanted if name not in SOURCES]
    if unknown:
        raise ValueError(f"--sources: there is no source '{unknown[0]}'; there are {', '.join(SOURCES)}")
    files = {name: metadata / SOURCES[name][0] / SOURCES[name][1] for name in wanted}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not there:
        raise ValueError(f"none of the files is there: {', '.join(map(str, files.values()))}")
    for name, file in files.items():
        if name not in there:
            print(f"{name}: skipped, there is no {file}")
    for name, file in there.items():
        folder = SOURCES[name][0]
        root = media / folder if (media / folder).is_dir() else media
        stems = excluded.get(folder, frozenset())
        index = index_by_stem(root, AudioProcessor.extensions)
        prepare(
            args,
            f"wavcaps {name}",
            KIND,
            partial(wavcaps_items, file, index, stems),
            {"audio": root},
            [file, *args.exclude],
            partial(count, file),
            out=args.out / name,
        )


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("wavcaps", __doc__, source="folder that holds json_files/")
    parser.add_argument("--media", type=Path, help="folder of the sounds; by default SOURCE/audio")
    parser.add_argument("--sources", help=f"some of {','.join(SOURCES)}; all by default")
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="one of WavCaps' blacklist files; may be repeated"
    )
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
