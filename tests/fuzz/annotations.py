"""Annotation files and the tables of published corpora, as training, validation and ``dataset_prep`` read them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

import train
from chatbridge.common.documents import DocumentError
from chatbridge.common.schema import ConfigError
from chatbridge.datasets import AnnotatedDataset, AnnotationsConfig, Parts
from chatbridge.processors import AudioConfig, AudioProcessor, ImageConfig, ImageProcessor, MediaError
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.tasks import AlignmentConfig, AlignmentTask, InstructionConfig, InstructionTask
from dataset_prep import audiocaps, cc_sbu_laion, clotho, coco_caption, multis, shards, validate, wavcaps, webvid
from tests import tiny
from tests.fuzz.configurations import portable
from tests.fuzz.damage import ODD, as_json, damaged, damaged_text, damaged_tree, misplaced
from tests.fuzz.target import Step, Target, command
from tests.fuzz.tars import QUICK
from tests.fuzz.weights import JSON_SIGNS

MEDIA = "files/media"

SIGNS = (
    *JSON_SIGNS,
    "\n",
    "\n\n",
    "][",
    "[]",
    ", ,",
    "x",
    "\ufeff",
    "é",
    "'",
    "undefined",
    "\r\n",
    "\u2028",
    "\\",
    "// c\n",
)
"""What stands in damaged JSON."""

TABLE_SIGNS = (
    ",", "\t", '"', '""', "'", "\n", "\r", "\0", ";", "\ufeff", "é", "x" * 200_000, "\\", '"\n"', ",,,,", "\x1a",
    "\ud83d",
    "nan", "=1+1", "http://127.0.0.1:9/a.jpg", "../../0.jpg",
)  # fmt: skip
"""What stands in a damaged table."""

VALUES: tuple[Any, ...] = (
    *ODD, "0.jpg", "1.wav", "../media/0.jpg", "/etc/passwd", "n" * 260 + ".jpg", "missing.jpg", ["0.jpg", "1.jpg"],
    ["0.jpg", 7],
    [None], [], ["a", None], [""], "<image>", "</s>", "<ImageHere>", "word " * 3000, "half \ud83d", "human", "gpt",
    "system",
    [{"from": "human", "value": "?"}], {"from": "gpt", "value": None}, "success", "train",
)  # fmt: skip

SETS = {
    "images": "ti-cap",
    "sounds": "ta-cap",
    "chats": "tia-conv",
    "questions": "ti-shortqa",
    "texts": "ti-ocr%ti-cap",
}
"""Annotation file -> its kind."""

Prepare = Callable[[list[str]], int]


class Annotations(Target):
    errors = (MediaError, ConfigError, DocumentError)
    plain = True

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.alignment = portable(tiny.make_config(folder, max_steps=1, report_every=0), folder)
        self.instruction = portable(tiny.make_config(folder, "instruction", max_steps=1, report_every=0), folder)
        self.entries = {name: json.loads((folder / "media" / f"{name}.json").read_text()) for name in list(SETS)[:3]}
        captions = self.entries["images"]
        self.entries["questions"] = [
            {"image_id": c["image_id"], "question": "What is it?", "answer": [c["caption"], "a thing"], "id": n}
            for n, c in enumerate(captions)
        ]
        self.entries["texts"] = [c | {"text": "STOP", "image_text": "a sign"} for c in captions]
        processors = {
            "image": ImageProcessor(ImageConfig(image_size=28)),
            "audio": AudioProcessor(AudioConfig(frames_per_clip=64))
        }  # fmt: skip
        rows, words = dict.fromkeys(("image", "audio"), lambda shape: 4), load_tokenizer(tiny.TOKENIZER)
        tasks = (AlignmentTask(AlignmentConfig()), InstructionTask(InstructionConfig()))
        self.parts = [Parts(task, words, rows, processors) for task in tasks]

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        (folder / "files").symlink_to(self.folder)
        yield from self._corpus(rng, folder) if rng.random() < 0.45 else self._dataset(rng, folder)

    def _dataset(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        name, kind = rng.choice(list(SETS.items()))
        file = folder / f"list{rng.choice(('.json', '.json', '.jsonl'))}"
        entries = self.entries[name][: rng.choice((1, 3, 12))]
        lines = file.suffix == ".jsonl"
        file.write_bytes(_written(entries, rng, lines))
        if rng.random() < 0.03:
            misplaced(file, rng)
        modalities = [m for m, letter in (("image", "i"), ("audio", "a")) if letter in kind.split("-")[0]]
        keys = {
            "annotations": str(file), "kind": kind, "media": dict.fromkeys(modalities, MEDIA),
            "invalid": rng.choice(("error", "skip")), "batch_size": 2,
        }  # fmt: skip
        talks = name in ("chats", "questions")
        yield "read", partial(_read, keys, self.parts[talks], False)
        yield "read to be asked", partial(_read, keys, self.parts[talks], True)
        media = [f"--media={m}={MEDIA}" for m in modalities]
        given = ["--annotations", str(file), "--kind", kind, *media]
        yield "validate", command(validate.main, *given, *QUICK)
        if rng.random() < 0.4:
            yield "to shards", command(shards.main, *given, "--out", "shards", *QUICK)
        if rng.random() < 0.3:
            tree = self.instruction if talks else self.alignment
            path = tiny.write_yaml(folder, tree | {"datasets": {"one": keys}, "validation": {"held_out": keys}})
            yield "train", command(train.main, "--cfg-path", str(path), "--options", "run.validate_every=1")

    def _corpus(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        prepare, name, tree, more = rng.choice(_corpora(self.entries))
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(tree, bytes):
            file.write_bytes(damaged(tree, rng))
        elif isinstance(tree, str):
            file.write_bytes(damaged_text(tree, rng, TABLE_SIGNS))
        else:
            file.write_bytes(_written(tree, rng, name.endswith("jsonl")))
        if rng.random() < 0.03:
            misplaced(file, rng)
        source = folder / name.split("/")[0] if "/" in name else file
        yield prepare.__module__.rpartition(".")[2], command(prepare, str(source), "--out", "prepared", *more, *QUICK)


def _written(tree: Any, rng: random.Random, lines: bool) -> bytes:
    """The file of a tree with odd values, or damaged text."""
    odd = rng.random() < 0.6
    changed = damaged_tree(tree, rng, VALUES) if odd else tree
    if lines and isinstance(changed, list):
        text = b"\n".join(as_json(entry, rng) for entry in changed)
    else:
        text = as_json(changed, rng)
    return text if odd else damaged_text(text.decode("utf-8", "surrogatepass"), rng, SIGNS)


def _read(keys: dict[str, Any], parts: Parts, asked: bool) -> None:
    """Every sample, as training reads it or as an evaluation does."""
    dataset = AnnotatedDataset(AnnotationsConfig(**keys), "one", parts, asked)
    for index in range(len(dataset)):
        if not asked:
            dataset.example(index, 0)
            continue
        record = dataset.record(index)
        for kind in dataset.kinds:
            for item in parts.task.items(record, kind):
                dataset.read(record, kind, item=item)


def _corpora(entries: dict[str, list[dict]]) -> list[tuple[Prepare, str, Any, list[str]]]:
    """(command, file, its whole content, arguments): a tree becomes JSON, text and bytes stay."""
    pictures, media = [entry["image_id"] for entry in entries["images"][:4]], ["--media", MEDIA]
    table = "image,caption\n" + "".join(f'{name},"a picture, of {name}"\n' for name in pictures)
    links = "caption\turl\n" + "".join(f"picture {n}\thttp://127.0.0.1:9/{n}.jpg\n" for n in range(3))
    karpathy = [
        {"filename": name, "split": "train", "cocoid": n, "sentences": [{"raw": f"picture {n}"}]}
        for n, name in enumerate(pictures)
    ]
    official = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(pictures)],
        "annotations": [{"image_id": n, "id": n, "caption": f"picture {n}"} for n in range(4)],
    }  # fmt: skip
    sounds = "audiocap_id,youtube_id,start_time,caption\n" + "".join(f"{n},{n},0,tone {n}\n" for n in range(4))
    named = (
        "file_name,"
        + ",".join(f"caption_{n}" for n in range(1, 6))
        + "\n"
        + "".join(f"{n}.wav" + f",tone {n}" * 5 + "\n" for n in range(4))
    )
    films = "videoid,contentUrl,duration,page_dir,name\n" + "".join(
        f"{n},http://127.0.0.1:9,PT1S,0_1,film {n}\n" for n in range(3)
    )
    caps = {
        "num_captions_per_audio": 1,
        "data": [{"id": str(n), "caption": f"tone {n}", "audio": f"{n}.wav", "duration": 1} for n in range(4)],
    }
    sink = io.BytesIO()
    columns = {"image": pictures, "caption": [f"picture {n}" for n in range(4)], "status": ["success"] * 4}
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    coco = [f"--media=llava_conversation.image={MEDIA}", f"--media=vqav2.image={MEDIA}", f"--media=vg_qa.image={MEDIA}"]
    chats = [
        {"id": str(n), "image": name, "conversations": entries["chats"][0]["conversations"]}
        for n, name in enumerate(pictures)
    ]
    qas = [{"id": n, "qas": [{"qa_id": n, "image_id": n, "question": "What?", "answer": "a thing"}]} for n in range(3)]
    return [
        (cc_sbu_laion.main, "table.csv", table, media),
        (cc_sbu_laion.main, "table.tsv", table.replace(",", "\t"), media),
        (cc_sbu_laion.main, "links.tsv", links, []), (cc_sbu_laion.main, "table.jsonl", entries["images"], media),
        (cc_sbu_laion.main, "table.parquet", sink.getvalue(), media),
        (cc_sbu_laion.main, "got/00000/0.json", {"caption": "a", "key": "0"}, []),
        (coco_caption.main, "dataset_coco.json", {"images": karpathy}, media),
        (coco_caption.main, "coco.json", official, media),
        (coco_caption.main, "pairs.json", entries["images"], media), (audiocaps.main, "train.csv", sounds, media),
        (clotho.main, "clotho.csv", named, media), (webvid.main, "films.csv", films, media),
        (wavcaps.main, "caps/json_files/FreeSound/fsd_final.json", caps, media),
        (multis.main, "all/conversation_58k.json", chats, coco),
        (multis.main, "all/vqa_train.json", entries["questions"], coco),
        (multis.main, "all/question_answers.json", qas, coco),
    ]  # fmt: skip
