"""Annotations to conversation strings, for every task kind and every choice that chance can make."""

from __future__ import annotations

import pytest

from chatbridge.common.read_mode import Training
from chatbridge.conversation.prompt import PromptFormat
from chatbridge.conversation.templates import Templates
from chatbridge.datasets.dialogues import DialogueMaker, clean_tags
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.original import tasks as original

WITH_TEMPLATES = [
    "ti-shortqa",
    "ti-normalqa",
    "ti-cap",
    "ti-ocr",
    "tv-shortqa",
    "tv-cap",
    "ta-cap",
    "tva-cap",
]
"""Tasks that the original has templates for."""

MODES = {
    "default": (Record.parse, DialogueMaker),
    "original": (original.parse, original.OriginalDialogueMaker),
}


class Chooser:
    """Stands in for `random.Random`: notes what was chosen from, and takes the n-th item of a choice of items."""

    def __init__(self, item: int):
        self.item = item
        self.log: list[str] = []

    def choice(self, options):
        prompt = all(isinstance(option, str) and option.startswith("PROMPT") for option in options)
        self.log.append("prompt" if prompt else "item")
        return options[0] if prompt else options[self.item]


def one_prompt(tasks):
    return Templates({task: ["PROMPT"] for task in tasks})


def render(result, item, compat, templates):
    """(conversation string, id, order of choices) of one golden annotation."""
    kind = TaskKind.parse(result["task"])
    parse, maker = MODES[compat]
    record = parse(result["annotation"])
    record.check(kind)
    rng = Chooser(item)
    sample = maker(kind, templates).sample(record, Training(rng))
    return PromptFormat().text(sample.dialogue), sample.id, rng.log


@pytest.fixture(scope="module")
def results(golden_json):
    return golden_json("multis_conversations")["results"]


def test_original(results):
    templates = one_prompt(WITH_TEMPLATES)
    for result in results:
        if result["error"]:
            with pytest.raises(ValueError):
                render(result, 0, "original", templates)
            continue
        found = [render(result, i, "original", templates) for i in range(len(result["all_possible"]))]
        assert [text for text, _, _ in found] == result["all_possible"], result["task"]
        assert {name for _, name, _ in found} == {result["id"]}
        assert all(order == result["order_of_random_choices"] for _, _, order in found), result["task"]


def quirky(result):
    """Whether the original is plainly wrong about this annotation."""
    annotation = result["annotation"]
    listed = isinstance(annotation.get("answer"), list) and not isinstance(annotation.get("question"), list)
    captionless = result["task"].endswith("-cap") and not {"desc", "caption"} & annotation.keys()
    return listed or captionless


def test_default_agrees_where_the_original_is_right(results):
    templates = Templates({task: ["PROMPT"] for task in WITH_TEMPLATES}, {"cap": ["PROMPT"], "normalqa": ["PROMPT"]})
    for result in results:
        if result["error"] or quirky(result):
            continue
        found = [render(result, i, "default", templates)[0] for i in range(len(result["all_possible"]))]
        assert found == result["all_possible"], result["task"]


def test_default_is_right_where_the_original_is_not(results):
    templates = Templates.load()
    kept = {"absent caption": 0, "list of answers": 0, "task without words": 0, "unknown task": 0}
    for result in results:
        annotation = result["annotation"]
        if not result["error"] and not quirky(result):
            continue
        if result["task"].endswith("-cap") and not {"desc", "caption"} & annotation.keys():
            with pytest.raises(ValueError, match="caption"):
                render(result, 0, "default", templates)
            kept["absent caption"] += 1
        elif isinstance(annotation.get("answer"), list):
            maker = DialogueMaker(TaskKind.parse(result["task"]), templates)
            sample = maker.sample(Record.parse(annotation))
            assert sample.dialogue.answer in annotation["answer"]
            assert list(sample.references) == annotation["answer"]
            kept["list of answers"] += 1
        else:
            try:
                text = render(result, 0, "default", templates)[0]
            except ValueError:
                kept["unknown task"] += 1
            else:
                answer = annotation.get("answer") or annotation.get("caption") or annotation.get("desc")
                assert text.endswith(f"###Assistant:{answer}\n###")
                assert "<query>" in text
                kept["task without words"] += 1
    assert sum(kept.values()) == sum(1 for r in results if r["error"] or quirky(r))


def test_cleaning_of_tags(golden_json):
    for sample in golden_json("multis_conversations")["clean"]:
        assert original.clean_tags(sample["text"]) == sample["clean"]
        default = clean_tags(sample["text"])
        assert "<image>" not in default and "<video>" not in default
        if not any(tag in sample["clean"] for tag in ("<image>", "<video>", "<audio>")):
            assert default == sample["clean"].strip()


def test_rendering_and_parsing_agree(results):
    """The pieces made by construction are those that the original's search through the string finds."""
    templates = one_prompt(WITH_TEMPLATES)
    for result in results:
        if result["error"]:
            continue
        kind = TaskKind.parse(result["task"])
        dialogue = original.OriginalDialogueMaker(kind, templates).sample(original.parse(result["annotation"])).dialogue
        segments = PromptFormat().segments(dialogue)
        slots = [piece for piece in segments if not hasattr(piece, "supervised")]
        assert [slot.modality for slot in slots] == list(kind.modalities)
        assert PromptFormat().parse(PromptFormat().text(dialogue), slots) == segments
