"""Whatever goes wrong with a medium is one error, with the file and the reason; nothing waits for ever."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import struct
import threading

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from chatbridge.common.documents import LFS_REASON
from chatbridge.common.read_mode import Training
from chatbridge.datasets import AnnotatedDataset, AnnotationsConfig, Parts
from chatbridge.inference.attachments import Medium, guess_modality, video_sound_problem
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    Blob,
    ImageConfig,
    ImageProcessor,
    MediaError,
    MediaLoader,
    VideoConfig,
    VideoProcessor,
    picture_files,
    sound_files,
)
from chatbridge.processors.base import MissingMedia, for_decoder, media_errors
from chatbridge.processors.time_limit import within
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.tasks import AlignmentConfig, AlignmentTask
from dataset_prep.prep.media_placement import check_media, processors
from tests.datasets.tools import TOKENIZER, two_rows
from tests.media_files import tone, write_video

PROCESSORS = {
    "image": ImageProcessor(ImageConfig(image_size=28)),
    "video": VideoProcessor(VideoConfig(image_size=28)),
    "audio": AudioProcessor(AudioConfig(frames_per_clip=64)),
}

WAYS = {
    **{modality: processor.load for modality, processor in PROCESSORS.items()},
    "limits": MediaLimits().check,
    "modality": lambda source: guess_modality(source, ("image", "video", "audio")),
    "sound": video_sound_problem,
    "medium": lambda source: Medium.of("image", source),
    "prepared picture": lambda source: check_media("image", source, "header", None),
    "prepared video": lambda source: check_media("video", source, "header", None),
    "prepared sound": lambda source: check_media("audio", source, "header", None),
}
"""Everything that opens a medium."""


@pytest.fixture
def special(tmp_path):
    """Things in a media folder that are no files, by what they are."""
    os.mkfifo(tmp_path / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s.jpg"))
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "pipe.jpg")
    yield [tmp_path / name for name in ("pipe.jpg", "s.jpg", "null.jpg", "linked.jpg")]
    listener.close()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_only_regular_files_are_opened(special, way):
    """Opening a named pipe waits for a writer."""
    for path in special:
        with pytest.raises(MediaError, match=rf"{path.name}: is a pipe, a socket or a device"):
            within(60, "the test", way, path)


def test_what_is_no_frame_in_a_folder_of_frames(special, tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "._0.png").write_bytes(b"what a Mac keeps beside a file")
    (tmp_path / "folder.png").mkdir()
    loaded = within(60, "the test", VideoProcessor(VideoConfig(num_frames=3, image_size=8)).load, tmp_path)
    assert (loaded.mean((1, 2, 3)).diff() > 0).all()
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(MediaError, match="is a folder without frames"):
        PROCESSORS["video"].load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "x" * 300,
        "x" * 254,
        "x" * 252 + ".mp4",
        "x/" * 3000,
        "half \ud83d",
        "byte \udce9.jpg",
        "gone.jpg",
        "loop.jpg",
        ".",
    ],
)
def test_names_that_no_file_has(tmp_path, name):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    loader = MediaLoader(PROCESSORS, dict.fromkeys(PROCESSORS, tmp_path))
    for modality in PROCESSORS:
        with pytest.raises(MediaError) as caught:
            loader.load(modality, name)
        str(caught.value).encode()
        assert "\n" not in str(caught.value)
    for way in WAYS.values():
        with pytest.raises(MediaError) as caught:
            way(tmp_path / name if name != "." else tmp_path / "nothing")
        str(caught.value).encode()


def test_bytes_whose_name_no_file_could_have(tmp_path):
    data = write_video(tmp_path / "a.mp4", [0] * 4).read_bytes()
    for name in ("a." + "x" * 300, "half.\ud83d", "a.mp4/", ""):
        assert PROCESSORS["video"].load(Blob(name, data)).shape == (4, 3, 28, 28)


def test_a_name_whose_bytes_are_not_utf8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.png")
    try:
        Image.new("RGB", (8, 8)).save(path)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    loader = MediaLoader(PROCESSORS, {"image": tmp_path})
    assert loader.load("image", "caf\udce9.png").shape == (1, 3, 28, 28) == loader.load("image", "caf\udce9").shape
    assert MediaLimits().check(path).kind == "image" and Medium.of("image", path).digest


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize("way", [way for name, way in WAYS.items() if name not in ("sound", "medium")])
def test_git_lfs_pointers_are_named(tmp_path, way):
    (tmp_path / "a.mp4").write_bytes(POINTER)
    for source in (tmp_path / "a.mp4", Blob("a.mp4", POINTER)):
        with pytest.raises(MediaError) as caught:
            way(source)
        assert caught.value.reason == LFS_REASON


ERRORS = [
    MemoryError(), RecursionError("too deep"), AttributeError("no codec"), KeyError("width"), OSError(5, "I/O error"),
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), struct.error("bad"), SystemError("x"), ZeroDivisionError(),
    AssertionError(), EOFError(), TypeError("None"), OverflowError("large"), Image.DecompressionBombError("large"),
]  # fmt: skip


class Odd:
    """A plugin's processor that raises."""

    modality, extensions, shape = "odd", (".odd",), (1, 2)

    def __init__(self, error: BaseException):
        self.error = error

    def load(self, source, mode=None):
        raise self.error

    def blank(self):
        return torch.zeros(self.shape)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_processor_raises(tmp_path, error):
    (tmp_path / "a.odd").write_bytes(b"x")
    loader = MediaLoader({"odd": Odd(error)}, {"odd": tmp_path})
    with pytest.raises(MediaError, match=r"a\.odd: cannot be read \(.+\)$") as caught:
        loader.load("odd", "a")
    assert caught.value.__cause__ is error, "what it was stays known"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_meant_to_end_a_program_does(tmp_path, error):
    (tmp_path / "a.odd").write_bytes(b"x")
    with pytest.raises(error):
        MediaLoader({"odd": Odd(error())}, {"odd": tmp_path}).load("odd", "a")


def test_a_plugin_s_odd_sample_is_replaced_and_counted(tmp_path):
    class Thermal(Odd):
        def load(self, source, mode=None):
            return torch.zeros(self.shape) if "good" in str(source) else super().load(source)

    for name in ("good", "bad"):
        (tmp_path / f"{name}.odd").write_bytes(b"x")
    entries = [{"id": name, "odd_id": name, "caption": "red"} for name in ("good", "bad")]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    task, tokenizer = AlignmentTask(AlignmentConfig()), load_tokenizer(TOKENIZER)
    parts = Parts(task, tokenizer, {"odd": two_rows}, {"odd": Thermal(IndexError("7"))})
    config = AnnotationsConfig(kind="odd-cap", annotations=str(tmp_path / "list.json"), media={"odd": str(tmp_path)})
    dataset = AnnotatedDataset(config, "odd", parts)
    example, entries = dataset.example(1, 0)
    assert example.tokens.id == "good" and entries[0].reason == "cannot be read (IndexError: 7)"


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), AttributeError("codec")])
def test_decoders_that_raise_what_nobody_expects(tmp_path, monkeypatch, error):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(0.1), 16000)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(soundfile, "SoundFile", fail)
    monkeypatch.setattr("av.open", fail)
    for name, modality in (("a.png", "image"), ("a.wav", "audio"), ("a.wav", "video")):
        with pytest.raises(MediaError, match=rf"{name}: "):
            PROCESSORS[modality].load(tmp_path / name)
        with pytest.raises(MediaError, match=rf"{name}: "):
            check_media(modality, tmp_path / name, "header", None)
        with pytest.raises(MediaError, match=rf"^{name}: "):
            MediaLimits().check(tmp_path / name)
    assert video_sound_problem(tmp_path / "a.wav") is not None
    with pytest.raises(MediaError):
        guess_modality(tmp_path / "a.wav", ("audio",))


def test_errors_are_one_line_that_every_log_takes():
    error = MediaError("half \ud83d\nname", "says '\x00\x1b[2J'")
    assert str(error) == "half \ufffd\ufffdname: says '\ufffd\ufffd[2J'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(MissingMedia), media_errors("a"):
        raise MissingMedia("a", "does not exist")
    with pytest.raises(MediaError) as caught, media_errors("a", "is odd"):
        raise ValueError("a page\nof backtrace" + "x" * 1000)
    assert str(caught.value) == "a: is odd (a page)"


@pytest.fixture
def never():
    """Something to wait for until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_pictures_and_sounds_have_a_time_limit(tmp_path, monkeypatch, never):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.flac", tone(0.1), 16000)
    monkeypatch.setattr(picture_files._Picture, "decoded", lambda self: never.wait())
    monkeypatch.setattr(sound_files, "_with_soundfile", lambda *_, **__: never.wait())
    for path, processor in (
        (tmp_path / "a.png", ImageProcessor(ImageConfig(read_seconds=0.1))),
        (tmp_path / "a.flac", AudioProcessor(AudioConfig(read_seconds=0.1))),
    ):
        with pytest.raises(MediaError, match=rf"{path.name}: timed out: it was not decoded within 0\.1 s"):
            processor.load(path)


def test_what_cannot_take_long_is_decoded_where_it_is_asked_for(tmp_path, monkeypatch):
    """A second thread costs as much as a hundredth of a small picture."""
    monkeypatch.setattr(picture_files, "within", lambda *_: pytest.fail("in a second thread"))
    monkeypatch.setattr(sound_files, "within", lambda *_: pytest.fail("in a second thread"))
    for options in ({}, {"progressive": True}):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.jpg", **options)
        PROCESSORS["image"].load(tmp_path / "a.jpg")
    for subtype in ("PCM_16", "PCM_24", "FLOAT"):
        soundfile.write(tmp_path / "a.wav", tone(0.1), 16000, subtype=subtype)
        PROCESSORS["audio"].load(tmp_path / "a.wav")


def test_a_large_jpeg_has_a_time_limit(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(picture_files, "within", lambda seconds, name, decode: asked.append(seconds) or decode())
    monkeypatch.setattr(picture_files, "AT_ONCE_PIXELS", 100)
    Image.fromarray(np.zeros((11, 11, 3), np.uint8)).save(tmp_path / "a.jpg")
    PROCESSORS["image"].load(tmp_path / "a.jpg", Training(random.Random(0)))
    assert asked == [60.0]


def test_an_interrupted_wait_leaves_nothing_to_the_next(monkeypatch):
    """Ctrl-C while a decoder is at work: what it gives later belongs to nobody."""
    from chatbridge.processors import time_limit

    assert within(60, "a", int, "1") == 1
    results = time_limit._own.helper.results

    class Interrupted:
        def get(self, timeout):
            raise KeyboardInterrupt

        put = results.put

    time_limit._own.helper.results = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        within(60, "b", int, "2")
    assert within(60, "c", int, "3") == 3


def test_the_preparation_s_processors_know_the_bounds():
    assert processors()["image"].config.max_side == 65_535


def test_no_seek_ends_before_the_beginning():
    stream = for_decoder(Blob("a.aiff", b"12345"))
    assert stream.seek(-1) == 0 and stream.seek(-2, 2) == 3 and stream.read() == b"45"
