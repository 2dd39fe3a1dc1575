"""Annotation files of MULTIS' sources -> samples, one reader per format.

Every reader is a function (files, media names) -> samples; `multis.py` says which dataset is read by which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chatbridge.datasets import Record, TaskKind
from chatbridge.datasets.records import is_blank
from dataset_prep.coco_caption import coco_items, coco_names
from dataset_prep.prep.grouping import Captioned, group
from dataset_prep.prep.items import MALFORMED, Drop, Item
from dataset_prep.prep.tables import column, load_json, rows, text
from dataset_prep.prep.texts import captions, clean

Names = Callable[[str], tuple[str, ...]]
Samples = Iterator[Item | Drop]

TEXT_KEYS = ("desc", "caption", "question", "answer", "text", "conversations", "references", "group")
"""What is carried over from an entry; keys that name files are written anew."""

_IDS = ("image_id", "image", "video_id", "video", "audio_id", "audio", "id")
_QUESTION_IDS = ("question_id", "qa_id")


def plain_names(name: str) -> tuple[str, ...]:
    """A file name as it stands, and without its folders."""
    return tuple(dict.fromkeys((name, name.rpartition("/")[2])))


def msrvtt_names(video: str) -> tuple[str, ...]:
    """``video7.mp4`` (or a folder of frames, ``video7``) from "video7", "video7.mp4" or 7."""
    base = video.rpartition("/")[2]
    stem = base.rpartition(".")[0] or base
    stem = f"video{stem}" if stem.isdecimal() else stem
    return tuple(dict.fromkeys((video if not video.isdecimal() else stem, stem, f"videos/{stem}")))


def vg_names(image: str) -> tuple[str, ...]:
    """Visual Genome's two folders of images."""
    base = image.rpartition("/")[2]
    base = base if "." in base else f"{base}.jpg"
    return tuple(dict.fromkeys((image, f"VG_100K/{base}", f"VG_100K_2/{base}", base)))


def entries(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """Annotation files in the formats of the original's data_task.py, LAVIS' lists and LLaVA's conversations.

    An entry names its medium by ``video_id``, ``image_id`` or ``audio_id`` (``video``, ``image`` and ``audio`` with
    LAVIS and LLaVA); every entry is checked as training would check it.
    """
    for file in files:
        for index, entry in rows(file):
            where = f"{file.name}: entry {index}"
            label = str(index)
            try:
                if not isinstance(entry, dict):
                    raise ValueError(f"an entry must be a JSON object, not {type(entry).__name__}")
                medium = column(entry, _IDS)
                if medium is None:
                    raise ValueError(f"names no file: it has none of the keys {', '.join(_IDS)}")
                if isinstance(medium, bool) or not isinstance(medium, (str, int)):
                    raise ValueError(f"its file name must be text, not {type(medium).__name__}")
                label = text(entry, *_QUESTION_IDS, "id") or str(index)
                kept = _checked(entry, str(medium), kind)
            except ValueError as error:
                yield Drop(label, MALFORMED, str(error), where)
                continue
            media = {modality: names(str(_own(entry, modality, medium))) for modality in kind.modalities}
            # One image has many questions, and LLaVA repeats an image's number: the place in the file tells them apart.
            yield Item(f"{medium}#{index}" if len(files) == 1 else f"{file.stem}/{medium}#{index}", kept, media, where)


def _own(entry: dict[str, Any], modality: str, medium: Any) -> Any:
    for key in (f"{modality}_id", modality):
        if isinstance(entry.get(key), (str, int)) and not isinstance(entry[key], bool):
            return entry[key]
    return medium


def _checked(entry: dict[str, Any], medium: str, kind: TaskKind) -> dict[str, Any]:
    """The text of an entry, cleaned where it is a caption, if training would take it. Raises ValueError."""
    kept = {key: entry[key] for key in TEXT_KEYS if not is_blank(entry.get(key))}
    if kind.kind == "cap":
        texts = captions(kept.pop("desc", kept.get("caption")))
        if not texts:
            raise ValueError("lacks caption (or desc) with any words")
        kept["caption"] = texts if len(texts) > 1 else texts[0]
    if kind.asks and isinstance(kept.get("answer"), list) and not isinstance(kept.get("question"), list):
        # Several answers to one question: training learns the commonest, evaluation accepts them all.
        answers = [str(a) for a in kept["answer"] if isinstance(a, (str, int, float)) and not is_blank(a)]
        if answers:
            kept["answer"] = max(answers, key=lambda a: (answers.count(a), -answers.index(a)))
            kept.setdefault("references", answers)
    record = Record.parse({"image_id": medium, "video_id": medium, **kept})
    record.check(kind, files=False)
    for role, said in record.turns[:2]:
        if not said.strip():
            raise ValueError(f"its first turn by {role} is empty")
    return kept


def vqa(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """VQA v2: a file of questions and one of annotations; or LAVIS' and MULTIS' lists, which `entries` reads."""
    if len(files) == 1:
        yield from entries(files, kind, names)
        return
    questions = {text(q, "question_id"): q for _, q in rows(files[0], "questions") if isinstance(q, dict)}
    for index, note in rows(files[1], "annotations"):
        where = f"{files[1].name}: entry {index}"
        number = text(note, "question_id")
        question = questions.get(number)
        if question is None or not number:
            yield Drop(number, MALFORMED, "its question is not in the file of questions", where)
            continue
        answers = [_words(a.get("answer")) for a in column(note, ("answers",)) or [] if isinstance(a, dict)]
        answers = [answer for answer in answers if answer]
        answer = _words(note.get("multiple_choice_answer")) or (max(answers, key=answers.count) if answers else "")
        yield _asked(number, question.get("question"), answer, answers, names(text(note, "image_id")), where)


def visual_genome(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """Visual Genome's question_answers.json (a list of images with their ``qas``), or lists for `entries`."""
    first = next(iter(rows(files[0])), (0, None))[1]
    if not (isinstance(first, dict) and "qas" in first):
        yield from entries(files, kind, names)
        return
    for index, image in rows(files[0]):
        for pair in image.get("qas") or []:
            where = f"{files[0].name}: image {index}"
            medium = text(pair, "image_id") or text(image, "id", "image_id")
            number = text(pair, "qa_id") or f"{medium}/{pair.get('question')}"
            answer = _words(pair.get("answer")).removesuffix(".")
            yield _asked(number, pair.get("question"), answer, [], names(medium), where)


def _asked(
    number: str, question: Any, answer: Any, accepted: list[str], media: tuple[str, ...], where: str
) -> Item | Drop:
    question, answer = _words(question), _words(answer)
    if not question or not answer:
        return Drop(number, MALFORMED, f"has no {'question' if not question else 'answer'}", where)
    entry = {"question": question, "answer": answer} | ({"references": accepted} if len(accepted) > 1 else {})
    return Item(number, entry, {"image": media}, where)


def _words(value: Any) -> str:
    """A value as a text, "" where it says nothing; 0 and False are answers."""
    return "" if is_blank(value) else clean(str(value))


def coco(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """COCO captions in any format of `coco_caption`, or MULTIS' own list."""
    tree = load_json(files[0])
    own = isinstance(tree, list) and tree and isinstance(tree[0], dict) and "image" not in tree[0]
    yield from entries(files, kind, coco_names) if own else coco_items(files[0], ("train", "restval"))


def msrvtt(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """MSR-VTT's videodatainfo.json (train split, all captions of a video in one sample), or MULTIS' own list."""
    tree = load_json(files[0])
    if not isinstance(tree, dict):
        yield from entries(files, kind, names)
        return
    train = {text(v, "video_id") for v in tree.get("videos", ()) if v.get("split") in (None, "train")}

    def sentences() -> Iterator[Captioned]:
        for index, sentence in enumerate(tree.get("sentences", ())):
            video = text(sentence, "video_id")
            if not video:
                yield Captioned(index, "", (), None, "names no video")
            elif video in train or not tree.get("videos"):
                yield Captioned(index, video, names(video), sentence.get("caption"))

    yield from group(sentences(), "video", files[0].name)


def textcaps(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """TextCaps: one caption per entry of ``data``, all those of an image in one sample."""

    def found() -> Iterator[Captioned]:
        for index, entry in rows(files[0], "data"):
            image = text(entry, "image_id")
            if not image:
                yield Captioned(index, "", (), None, "names no image")
            else:
                yield Captioned(index, image, (f"{image}.jpg", image), entry.get("caption_str"))

    yield from group(found(), "image", files[0].name)


def ocr_vqa(files: Sequence[Path], kind: TaskKind, names: Names) -> Samples:
    """OCR-VQA: an object of books, each with parallel lists of questions and answers; split 1 is training."""
    tree = load_json(files[0])
    if not isinstance(tree, dict):
        raise ValueError(f"{files[0]}: OCR-VQA's dataset.json is an object of books, not {type(tree).__name__}")
    for book, entry in tree.items():
        where = f"{files[0].name}: {book}"
        questions, answers = entry.get("questions") or [], entry.get("answers") or []
        if entry.get("split", 1) != 1:
            continue
        if len(questions) != len(answers):
            yield Drop(book, MALFORMED, f"has {len(questions)} questions, but {len(answers)} answers", where)
            continue
        ending = Path(str(entry.get("imageURL", ""))).suffix or ".jpg"
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield _asked(f"{book}/{index}", question, answer, [], (f"{book}{ending}", book), where)
