"""Fixtures of the page's tests."""

from __future__ import annotations

import pytest

from tests.demo.tools import User


@pytest.fixture
def user(running):
    return User(running)
