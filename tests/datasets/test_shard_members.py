"""Which member of a sample in a tar stands for which file that its annotation names."""

from __future__ import annotations

import pytest

from chatbridge.datasets.webdataset import choose_members

PICTURES = (".jpg", ".jpeg", ".png")


def members(*endings: str, key: str = "00017") -> dict:
    return {"__key__": key, "__span__": (0, 0), **dict.fromkeys(endings, b"")}


@pytest.mark.parametrize(
    "names, there, expected",
    [
        (["00017.jpg"], ["json", "jpg"], ["jpg"]),
        (["00017.1.jpg"], ["0.jpg", "1.jpg", "json"], ["1.jpg"]),
        (["00017.1.jpg", "00017.0.jpg"], ["0.jpg", "1.jpg"], ["1.jpg", "0.jpg"]),
        (["other.jpg", "00017.0.jpg"], ["0.jpg", "1.jpg"], ["1.jpg", "0.jpg"]),
        (["folder/00017.LEFT.JPG"], ["left.jpg", "right.jpg"], ["left.jpg"]),
        (["00017"], ["png", "jpg"], ["jpg"]),
        (["a.png"], ["png", "jpg"], ["png"]),
        (["a", "b", "c"], ["10.jpg", "2.jpg", "1.jpg"], ["1.jpg", "2.jpg", "10.jpg"]),
        (["00017.jpg", "00017.jpg"], ["jpg", "png"], ["jpg", "png"]),
        (["a.jpg", "b.jpg"], ["jpg"], ["jpg", None]),
        (["a.jpg"], ["json", "wav"], [None]),
        ([], ["jpg"], []),
    ],
)
def test_choice(names, there, expected):
    assert choose_members(names, members(*there), PICTURES) == expected


def test_keys_in_folders():
    found = choose_members(["00017.1.jpg"], members("0.jpg", "1.jpg", key="part3/00017"), PICTURES)
    assert found == ["1.jpg"]
