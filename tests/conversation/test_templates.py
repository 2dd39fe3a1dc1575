"""Templates: as many per kind as the original has, one's own beside them, and general ones for new modalities."""

from __future__ import annotations

import pytest

from chatbridge.conversation.templates import QUESTION, Templates

COUNTS = {
    "ti-shortqa": 7,
    "ti-normalqa": 7,
    "ti-cap": 15,
    "ti-ocr": 17,
    "tv-shortqa": 11,
    "tv-cap": 16,
    "ta-cap": 16,
    "tva-cap": 16,
}


def test_counts():
    templates = Templates.load()
    assert {task: len(items) for task, items in templates.by_task.items()} == COUNTS
    for task, items in templates.by_task.items():
        assert len(set(items)) == len(items), task
        assert all(item.count(QUESTION) == task.endswith("qa") for item in items), task
        assert not any("###" in item or "{" in item for item in items), task


def test_fallback_for_other_modalities():
    templates = Templates.load()
    captions = templates.choices("thermal-cap", "cap", ["thermal picture"])
    assert len(captions) > 1
    assert all("thermal picture" in text for text in captions)
    joint = templates.choices("tia-shortqa", "shortqa", ["image", "audio"])
    assert any("image and audio" in text for text in joint)
    assert templates.choices("ta-yesnoqa", "yesnoqa", ["audio"]) == templates.choices(
        "ta-normalqa", "normalqa", ["audio"]
    )
    assert templates.choices("t-normalqa", "normalqa") == (QUESTION,)


def test_a_kind_without_templates():
    with pytest.raises(ValueError, match="thermal-reading"):
        Templates.load().choices("thermal-reading", "reading", ["thermal"])


def test_own_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("thermal-cap: ['How warm is it?']\nti-cap: ['Caption?']\ngeneric: {heatqa: ['Heat: <QUESTION>']}\n")
    templates = Templates.load(file)
    assert templates.choices("thermal-cap", "cap", ["thermal"]) == ("How warm is it?",)
    assert templates.choices("ti-cap", "cap", ["image"]) == ("Caption?",)
    assert templates.choices("thermal-heatqa", "heatqa", ["thermal"]) == ("Heat: <QUESTION>",)
    assert len(templates.by_task["tv-cap"]) == COUNTS["tv-cap"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a list", "mapping"),
        ("ti-cap: []", "ti-cap"),
        ("ti-cap: [1]", "ti-cap"),
        ("ti-shortqa: ['no place for it']", "needs <QUESTION>"),
        ("ti-cap: ['What? <QUESTION>']", "cannot have <QUESTION>"),
        ("generic: [x]", "generic"),
        ("a: [unclosed", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, reason):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        Templates.load(file)
    assert "bad.yaml" in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="none.yaml"):
        Templates.load(tmp_path / "none.yaml")
