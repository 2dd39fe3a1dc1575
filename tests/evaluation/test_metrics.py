"""Metrics against published values, and files of answers that are none."""

from __future__ import annotations

import pytest

from chatbridge.evaluation.metrics import exact_match, normalise, wilson
from chatbridge.evaluation.rows import read_rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{oops\n", "line 1: is not valid JSON"),
        ("[" * 100_000, "line 1: is nested too deeply"),
        ('{"dataset": "a", "condition": "full", "correct": true}\n{"id": 3}\n', "line 2 has no 'dataset'"),
        ("[1]\n", "line 1 has no 'dataset'"),
    ],
)
def test_answer_files_that_are_none(tmp_path, content, message):
    file = tmp_path / "predictions.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(file)


def test_wilson_against_published_values():
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 hits out of 2"):
        wilson(3, 2)


def test_exact_match_reads_past_form():
    assert normalise("  The red  Square. ") == "red square"
    assert exact_match("A red square.", ["red square"])
    assert not exact_match("red square rises", ["red square"])
    assert exact_match("x", []) is None
