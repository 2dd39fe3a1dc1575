"""docs/configuration.md says what the code declares."""

from __future__ import annotations

import subprocess
import sys

from chatbridge import register_all
from chatbridge.common.reference import reference
from tests.tiny import ROOT


def test_the_reference_is_up_to_date():

    # In a process of its own: other tests register parts that do not belong to the package.
    command = [sys.executable, "-m", "chatbridge.common.reference"]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == fresh, "run: python -m chatbridge.common.reference > docs/configuration.md"


def test_every_key_has_a_help_text():
    register_all()
    for line in reference().splitlines():
        if line.startswith("| `"):
            assert line.split(" | ")[-1].strip(" |"), f"no help text: {line}"
