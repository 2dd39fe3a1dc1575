"""docs/glossary.md: every file that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| (.+?) \| .+ \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)


def test_files_exist_and_terms_are_in_order():
    terms = [term for term, _ in ROWS if term != "term"]
    assert len(terms) > 40 and terms == sorted(terms, key=str.lower)
    files = [file for _, where in ROWS for file in re.findall(r"`(.+?)`", where)]
    assert not [file for file in files if not (ROOT / file).is_file()]
