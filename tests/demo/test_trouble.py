"""Bad files, bad requests, users who vanish, and the server's own end: a clear message, and life goes on."""

from __future__ import annotations

import os
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from tests.demo.tools import Browser, alone, page, slowly, text_of
from tests.patience import PATIENCE, until


@pytest.fixture(scope="module")
def running(tmp_path_factory, engine):
    here, empty = Path.cwd(), tmp_path_factory.mktemp("empty")
    os.chdir(empty)
    try:
        with page(tmp_path_factory.mktemp("page"), [engine], parallel=1, kept_seconds=0.0) as served:
            yield served
    finally:
        os.chdir(here)
    assert list(empty.iterdir()) == []  # gradio likes to leave folders where it was started


def hours(path: Path, count: float) -> Path:
    """A video of one frame a minute."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=1)
        track.width = track.height = 32
        track.pix_fmt = "yuv420p"
        for minute in range(round(count * 60) + 1):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = minute * 60, Fraction(1)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def bomb(path: Path, side: int = 20_000) -> Path:
    """A PNG of a few kilobytes that would fill hundreds of megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side // 10)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def bad_files(folder: Path) -> dict[Path, str]:
    """Files that are not what they seem, and what is to be said about each."""
    (folder / "words.mp4").write_text("this is no video\n" * 50)
    (folder / "empty.wav").touch()
    (folder / "page.png").write_text("<html><script>alert(1)</script></html>")
    (folder / "list.mp3").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    return {
        folder / "words.mp4": "words.mp4: holds no picture, video or sound",
        folder / "empty.wav": "empty.wav: is empty",
        folder / "page.png": "page.png: holds no picture, video or sound",
        folder / "list.mp3": "list.mp3: holds no picture, video or sound",
        hours(folder / "long.mp4", 4): "long.mp4: lasts 4:00:01 h or longer, 60 s are allowed",
        bomb(folder / "bomb.png"): "megapixels",
    }


def test_files_that_are_not_what_they_seem(engine, running, files, user, tmp_path):
    for file, message in bad_files(tmp_path).items():
        shown = user.ask("what is it?", file, files["a.png"])
        assert shown.wrong and message in shown.status and str(running.conversations.store.root) not in shown.status
        assert shown.messages == [] and shown.typed["text"] == "what is it?"
        assert [Path(kept["path"]).name for kept in shown.typed["files"]] == ["a.png"]
    assert user.ask("what is it?", files["a.png"]).answer == alone(engine, ("what is it?", [files["a.png"]]))[0]


def test_the_content_decides_and_not_the_name(engine, user, files, tmp_path):
    renamed = tmp_path / "loud.txt"
    renamed.write_bytes(files["loud.mp4"].read_bytes())
    shown = user.ask("what is it?", renamed)
    assert shown.answer == alone(engine, ("what is it?", [files["loud.mp4"]]))[0]
    assert "video.mp4" in shown.markup(0) and "loud.txt" in shown.markup(0)


def test_too_much_at_once(engine, running, user, files):
    long = user.ask("x" * 10_000_000)
    assert long.wrong and "10,000,000 characters cannot fit" in long.status and len(long.typed["text"]) == 10_000_000
    many = user.ask("what?", *[files["a.png"]] * 7)
    assert many.wrong and "7 media: are more than the 6" in many.status
    browser = Browser(running, "flood")
    big = browser.upload(("big.wav", bytes(2**20 + 1)))
    assert big.status_code == 413 and "maximum" in big.text
    assert browser.upload(*[(f"{n}.bin", bytes(2**20)) for n in range(8)]).status_code == 413
    join = f"{running.address}gradio_api/queue/join"
    assert httpx.post(join, content=bytes(33 * 2**20), timeout=PATIENCE).status_code == 413

    def endless():
        for _ in range(64):
            yield bytes(2**20)

    with pytest.raises(httpx.HTTPError):  # no length is announced
        httpx.post(join, content=endless(), timeout=PATIENCE).raise_for_status()
    browser.close()
    assert user.ask("still there?").answer == alone(engine, ("still there?", []))[0]


def test_names_cannot_lead_elsewhere(running, files, tmp_path):
    store, browser = running.conversations.store, Browser(running, "climber")
    data = files["a.png"].read_bytes()
    for name in ("../../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "a/../../evil.png"):
        (path,) = browser.upload((name, data)).json()
        assert Path(path).resolve().is_relative_to(store.root / "uploads")
    assert not list(store.root.parent.glob("evil.png"))
    secret = tmp_path / "secret.png"
    secret.write_bytes(data)
    for path in (str(secret), f"{store.root}/uploads/../../{secret}", "/etc/passwd", "../secret.png"):
        browser.ask("what?", path)
        said = str(browser.last())
        assert "not uploaded" in said or "upload it again" in said or "Cannot move" in said
    browser.close()


def test_files_are_seen_by_those_who_know_their_address_only(running, files, user):
    user.ask("what?", files["a.png"])
    conversation = running.conversations.find(user.name)
    browser = Browser(running, "spy")
    stolen = next(conversation.folder.rglob("a.png"))
    browser.ask("what is it?", str(stolen))
    assert "upload it again" in str(browser.last()) and stolen.exists()
    seen = browser.http.get(f"gradio_api/file={stolen}")
    assert seen.status_code == 200 and seen.headers["x-content-type-options"] == "nosniff"
    store = running.conversations.store
    for path in (
        "/etc/passwd", store.root, store.root / "conversations", stolen.parent, "https://example.com/a.png",
        "http:/127.0.0.1/", Path(__file__),
    ):  # fmt: skip
        assert browser.http.get(f"gradio_api/file={path}").status_code == 403, path
    for route in ("monitoring", "monitoring/summary", "deep_link", "proxy=http://127.0.0.1/", "component_server"):
        assert browser.http.get(route).status_code == browser.http.get(f"gradio_api/{route}").status_code == 404
    for route in ("process_recording", "vibe-edit", "vibe-code", "component_server"):
        assert browser.http.post(f"gradio_api/{route}", json={}).status_code == 404, route
    refused = browser.ask("what?", "http://127.0.0.1:1/secret.png")
    assert refused.status_code == 400 and "uploaded" in refused.text
    # Two uploads of the same file know nothing of each other.
    data = files["b.png"].read_bytes()
    first, second = (browser.upload(("b.png", data)).json()[0] for _ in range(2))
    assert first != second
    browser.close()


def test_a_user_who_vanishes_in_an_answer(engine, running, user, files):
    browser = Browser(running, "vanishing").open()
    with slowly(engine, 0.1):
        browser.ask("what is it?", *browser.upload(("a.png", files["a.png"].read_bytes())).json())
        with browser.messages() as messages:
            assert sum(1 for message, _ in zip(messages, range(5), strict=False))
            conversation = running.conversations.find("vanishing")
            folder = conversation.folder
            assert folder.exists()
        browser.close()
        until(lambda: not conversation.busy)
    assert user.ask("hello?").answer == alone(engine, ("hello?", []))[0]
    until(lambda: running.conversations.find("vanishing") is None)
    assert not folder.exists()


def test_what_belongs_to_a_page_goes_with_it_and_it_is_told_so(engine, running, files):
    store, browser = running.conversations.store, Browser(running, "passing").open()
    browser.ask("what is it?", *browser.upload(("a.png", files["a.png"].read_bytes())).json())
    assert browser.last() is not None
    conversation = running.conversations.find("passing")
    running.conversations.sweep()
    assert conversation.folder.exists()  # its page is open
    browser.close()
    until(lambda: not conversation.folder.exists())
    back = Browser(running, "passing").open()
    back.ask("and now?")
    assert "has been forgotten" in str(back.last())
    back.ask("and now?")
    assert text_of(back.last()["data"][0][-1]) == alone(engine, ("and now?", []))[0]
    back.close()
    waiting = store.root / "uploads"
    Browser(running, "careless").upload(("a.png", files["a.png"].read_bytes()))
    store.sweep(time.time() + store.upload_seconds + 1)
    assert not waiting.exists() or not list(waiting.rglob("*.png"))
