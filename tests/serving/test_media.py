"""Media that the HTTP endpoint refuses: too large, damaged, of no kind, outside the folder; and what stays on disk."""

from __future__ import annotations

import os
import tempfile

import openai
import pytest

from chatbridge.inference.limits import MediaLimits
from tests.inference.test_limits import long_video, png_header
from tests.inference.tools import write_media
from tests.media_files import tone, tracks, without_decoder
from tests.serving.tools import ASKED, Served, assistant, data_url, image, sound, user, video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with media, and things beside it that are nobody's business."""
    folder = tmp_path_factory.mktemp("outer") / "shown"
    write_media(folder)
    secret = folder.parent / "secret.png"
    secret.write_bytes((folder / "a.png").read_bytes())
    (folder / "inner").mkdir()
    (folder / "inner" / "c.png").write_bytes((folder / "b.png").read_bytes())
    (folder / "out.png").symlink_to(secret)
    (folder / "outer").symlink_to(folder.parent)
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "text.mp4").write_text("a text that calls itself a video")
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile loud.mp4\n")
    (folder / "zero.wav").touch()
    os.mkfifo(folder / "pipe.wav")
    long_video(folder / "long.mp4", 4)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def served(engine, folder):
    served = Served(engine, folder=folder, limits=MediaLimits(max_bytes=100_000, max_count=3))
    yield served
    served.close()


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        (image("http://127.0.0.1/a.png"), 400, "http:// addresses are not fetched; send the content as a data URL"),
        (image("HTTPS://[x"), 400, "HTTPS:// addresses are not fetched"),
        (image("data:image/png,abc"), 400, "no data URL in base64"),
        (image("data:image/png;base64"), 400, "no data URL in base64"),
        (image("data:image/png;base64,a!b"), 400, "is not base64"),
        (image("data:image/png;base64,"), 400, "is empty"),
        (image("data:image/png;base64,AAAA"), 400, "holds no picture, video or sound"),
        (image(data_url(png_header(60_000, 60_000))), 413, "far larger than 50.0 megapixels"),
        (image(data_url(png_header(9_000, 9_000))), 413, "81.0 megapixels; 50.0 megapixels are allowed"),
        (image(data_url(bytes(100_001))), 413, "more than the 100,000 bytes allowed"),
        (image("broken.png"), 400, "broken.png: cannot be decoded"),
        (image("loud.mp4"), 400, "loud.mp4: is a video and not a picture"),
        (image("text.mp4"), 400, "text.mp4: holds no picture"),
        (video("text.mp4"), 400, "text.mp4: holds no picture"),
        (video("list.mp4"), 400, "list.mp4: holds no picture"),
        (video("long.mp4"), 413, "long.mp4: lasts 4:00:01 h or longer, 10:00 min are allowed"),
        (video("still.mp4", sound=True), 400, "still.mp4: has no sound track"),
        (video("a.wav"), 400, "a.wav: is a sound and not a video"),
        (sound(b""), 400, "is empty (0 bytes)"),
        (sound(b"RIFF\0\0\0\0WAVEfmt "), 400, "is truncated"),
        ({"type": "audio_url", "audio_url": {"url": "zero.wav"}}, 400, "zero.wav: is empty"),
        ({"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}}, 400, "is not base64"),
    ],
)
def test_media_that_cannot_be_used(served, folder, part, status, message):
    before = sorted(folder.rglob("*"))
    for stream in (False, True):
        found, error = served.post(ASKED | {"messages": [user("what?", part)], "stream": stream})
        assert (found, error["type"]) == (status, "invalid_request_error")
        assert message in error["message"] and str(folder) not in error["message"]
    assert sorted(folder.rglob("*")) == before


def test_a_video_whose_sound_cannot_be_heard(served, folder):
    """It is shown, and said so; where the sound was asked for, it is refused."""
    without_decoder(tracks(folder / "phone.mp4", [tone(0.5, 48000)]), 0)
    answer = served.client().chat.completions.create(**ASKED | {"messages": [user("what?", video("phone.mp4"))]})
    problem = "has a sound track in a codec that cannot be decoded here"
    assert answer.chatbridge["remarks"] == [f"phone.mp4 {problem}; it is shown without sound"]
    status, error = served.post(ASKED | {"messages": [user("what?", video("phone.mp4", sound=True))]})
    assert status == 400 and f"phone.mp4: {problem}; leave its sound out" in error["message"]
    status, error = served.post(
        ASKED | {"messages": [user("what?", {"type": "audio_url", "audio_url": {"url": "phone.mp4"}})]}
    )
    assert status == 400 and "phone.mp4: is a video and has no sound" in error["message"]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png", "inner/../../secret.png", "out.png", "outer/secret.png", "{outer}/secret.png",
        "file://{outer}/secret.png", "file://{folder}/../secret.png", "file://{folder}/%2e%2e/secret.png",
        "file://elsewhere{folder}/a.png", "~/secret.png", "none.png", "a.png\0", ".", "inner", "pipe.wav", "",
        "/etc/passwd", "/dev/zero", "x" * 5000,
    ],
)  # fmt: skip
def test_names_of_what_is_outside_the_folder_or_not_there(served, folder, name):
    name = name.replace("{outer}", str(folder.parent)).replace("{folder}", str(folder))
    status, error = served.post(ASKED | {"messages": [user("what?", image(name))]})
    assert (status, error["code"]) == (400, "invalid_media")
    assert error["message"] == "messages[0].content[1]: names no file below the media folder"


@pytest.mark.parametrize("name", ["a.png", "inner/c.png", "inside.png", "inner/../a.png", "file://{folder}/a.png"])
def test_names_of_what_is_inside_the_folder(served, folder, name):
    name = name.replace("{folder}", str(folder))
    served.client().chat.completions.create(**ASKED | {"messages": [user("what?", image(name))]})


def test_names_without_a_folder(engine):
    served = Served(engine)
    for name in ("a.png", "file:///etc/passwd"):
        with pytest.raises(openai.BadRequestError, match="this server has no --media-folder"):
            served.client().chat.completions.create(**ASKED | {"messages": [user(image(name))]})
    served.close()


def test_too_many_media(served):
    talk = [user(image("a.png"), image("a.png")), assistant("yes"), user(image("a.png"), image("b.png"))]
    status, error = served.post(ASKED | {"messages": talk})
    assert status == 413 and "4 media: are more than the 3" in error["message"]


def test_nothing_stays_on_disk(served, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    create = served.client().chat.completions.create
    before = sorted(folder.rglob("*"))
    for file in ("loud.mp4", "still.mp4"):
        create(**ASKED | {"messages": [user("what now?", video(data_url(folder / file), sound=False))]})
    damaged = bytearray((folder / "loud.mp4").read_bytes())
    damaged[200:4000] = bytes(3800)
    with pytest.raises(openai.BadRequestError):
        create(**ASKED | {"messages": [user("what now?", video(data_url(bytes(damaged))))]})
    assert list(tmp_path.iterdir()) == [] and sorted(folder.rglob("*")) == before
