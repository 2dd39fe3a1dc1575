"""Fixtures of the page's tests."""

from __future__ import annotations

import pytest

from tests.demo.tools import Visitor


@pytest.fixture
def visitor(running):
    return Visitor(running)
