"""Limits on media: told from headers, by content, before anything is decoded."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from chatbridge.inference.limits import LimitExceeded, MediaLimits, add_arguments, from_arguments
from chatbridge.processors.base import MediaError
from tests import media_files


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def long_video(path, hours: float):
    """A video of few frames that lasts for hours."""
    import av

    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=1)
        track.width = track.height = 16
        track.pix_fmt = "yuv420p"
        for seconds in (0, 1, round(hours * 3600)):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts = seconds
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "sound"),
    [("a.png", "image", False), ("a.wav", "audio", True), ("loud.mp4", "video", True), ("still.mp4", "video", False)],
)
def test_says_what_is_there(files, name, kind, sound):
    for source in (files[name], files[name].read_bytes()):
        found = MediaLimits().check(source)
        assert (found.kind, found.sound) == (kind, sound)
        assert (found.seconds > 0) == (kind != "image") and (found.pixels > 0) == (kind != "audio")
    assert MediaLimits().check(files["loud.mp4"], "audio").kind == "video"


@pytest.mark.parametrize(
    ("name", "modality", "message"),
    [
        ("a.png", "video", "a.png: is a picture and not a video"),
        ("a.wav", "image", "a.wav: is a sound and not a picture"),
        ("still.mp4", "audio", "still.mp4: is a video and has no sound"),
    ],
)
def test_is_not_what_it_is_shown_as(files, name, modality, message):
    with pytest.raises(MediaError, match=message):
        MediaLimits().check(files[name], modality)


@pytest.mark.parametrize(
    ("name", "limits", "message"),
    [
        ("loud.mp4", {"max_bytes": 500}, r"has \d,\d+ bytes, more than the 500 bytes allowed"),
        ("loud.mp4", {"max_seconds": 0.5}, r"lasts 1\S* s or longer, 0.5 s are allowed"),
        ("a.wav", {"max_seconds": 0.25}, "lasts 0.5 s or longer"),
        ("a.png", {"max_pixels": 1199}, "40 x 30, that is 1,200 pixels; 1,199 pixels are allowed"),
        ("loud.mp4", {"max_pixels": 3135}, "56 x 56"),
    ],
)
def test_one_above_each_limit(files, name, limits, message):
    for source in (files[name], files[name].read_bytes()):
        with pytest.raises(LimitExceeded, match=message):
            MediaLimits(**limits).check(source)


def test_at_the_limit(files):
    size = files["a.png"].stat().st_size
    assert MediaLimits(max_bytes=size, max_pixels=1200).check(files["a.png"]).pixels == 1200
    assert MediaLimits(max_seconds=0.5).check(files["a.wav"]).seconds == 0.5
    MediaLimits(max_count=3).check_count(3)
    with pytest.raises(LimitExceeded, match="4 media: are more than the 3"):
        MediaLimits(max_count=3).check_count(4)


def test_decompression_bombs():
    for side in (9_000, 60_000):
        with pytest.raises(LimitExceeded, match="50.0 megapixels"):
            MediaLimits().check(png_header(side, side))
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros((655_350, 8), np.int16), 655_350, format="FLAC")
    assert len(silence.getvalue()) < 10_000
    with pytest.raises(LimitExceeded, match="5,242,800 samples"):
        MediaLimits(max_seconds=20).check(silence.getvalue())


def test_four_hours(tmp_path):
    with pytest.raises(LimitExceeded, match="long.mp4: lasts 4:00:01 h or longer, 10:00 min are allowed"):
        MediaLimits().check(long_video(tmp_path / "long.mp4", 4))


def test_a_header_that_lies_about_the_duration(tmp_path):
    """The movie header says one second; the packets do not."""
    file = long_video(tmp_path / "long.mp4", 4)
    data = bytearray(file.read_bytes())
    for box, duration in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        at = data.index(box) + duration
        data[at : at + 4] = struct.pack(">I", 1000)
    edit = data.index(b"elst") + 12
    data[edit : edit + 4] = struct.pack(">I", 1000)
    with pytest.raises(LimitExceeded, match="lasts 4:00:00 h"):
        MediaLimits().check(bytes(data))


def test_by_content_and_not_by_name(files, tmp_path):
    misnamed = tmp_path / "picture.mp4"
    misnamed.write_bytes(files["a.png"].read_bytes())
    assert MediaLimits().check(misnamed).kind == "image"


@pytest.mark.parametrize(
    "content",
    [
        b"a text that calls itself a video\n" * 50,
        np.random.default_rng(0).bytes(100_000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nloud.mp4\n#EXT-X-ENDLIST\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
    ],
)
def test_what_is_no_medium(content, tmp_path):
    file = tmp_path / "thing.mp4"
    file.write_bytes(content)
    for source in (file, content):
        for modality in (None, "image", "video", "audio"):
            with pytest.raises(MediaError, match="holds no picture, video or sound"):
                MediaLimits().check(source, modality)


def test_a_playlist_cannot_show_the_file_beside_it(files, tmp_path):
    """FFmpeg opens what an ``ffconcat`` names: without the check, one upload could show another."""
    import av

    shutil.copy(files["loud.mp4"], tmp_path)
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile loud.mp4\n")
    with av.open(str(playlist)) as container:
        assert container.streams.video
    with pytest.raises(MediaError, match="list.mp4: holds no"):
        MediaLimits().check(playlist)


def test_missing_empty_damaged_special(files, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.wav").touch()
    cut = files["loud.mp4"].read_bytes()
    for source, message in (
        (tmp_path / "none.png", "none.png: does not exist"),
        (tmp_path / "zero.wav", "zero.wav: is empty"),
        (b"", "is empty"),
        (tmp_path / "pipe", "pipe: is a pipe, a socket or a device, a regular file was expected"),
        (tmp_path, "is a folder"),
        (cut[:600], "is truncated"),
    ):
        with pytest.raises(MediaError, match=message) as caught:
            MediaLimits().check(source)
        assert str(tmp_path.parent) not in str(caught.value)


def test_other_formats(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"):
        data = io.BytesIO()
        picture.save(data, kind)
        assert MediaLimits().check(data.getvalue(), "image").pixels == 600
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64"):
        data = io.BytesIO()
        soundfile.write(data, media_files.tone(0.5), 16000, format=kind)
        assert MediaLimits().check(data.getvalue(), "audio").seconds == pytest.approx(0.5, abs=0.2)
    for ending, codecs in (("webm", ("libvpx", "libopus")), ("mkv", ("libx264", "aac")), ("avi", ("mpeg4", "mp3"))):
        file = tmp_path / f"video.{ending}"
        media_files.write_video(file, [0, 80, 160], sound=media_files.tone(1.0, rate=48000), rate=48000, codecs=codecs)
        assert MediaLimits(max_seconds=3).check(file, "video").sound


def test_other_modalities_are_only_weighed():
    assert MediaLimits().check(b"degrees", "thermal").kind == "thermal"
    with pytest.raises(LimitExceeded):
        MediaLimits(max_bytes=3).check(b"degrees", "thermal")


def test_options():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert from_arguments(parser.parse_args([])) == MediaLimits()
    given = ["--max-upload-mb", "0.5", "--max-media", "2", "--max-seconds", "9", "--max-megapixels", "0.25"]
    limits = MediaLimits(max_bytes=2**19, max_count=2, max_seconds=9.0, max_pixels=250_000)
    assert from_arguments(parser.parse_args(given)) == limits
    with pytest.raises(ValueError, match="max_count is 0"):
        from_arguments(parser.parse_args(["--max-media", "0"]))
