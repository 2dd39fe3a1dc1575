"""Files that are odd and good all the same: they give what is in them, and what is missing is told."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from chatbridge.inference.attachments import guess_modality, video_sound_problem
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors import AudioConfig, AudioProcessor, Blob, MediaError, VideoConfig, VideoProcessor
from chatbridge.processors.picture_files import read_rgb
from chatbridge.processors.sound_files import read_sound
from tests.media_files import cut, tone, tracks, without_decoder, write_video, write_wav

LEVELS = np.tile(np.array([0, 29, 76, 150, 226], np.uint8), (6, 4))
"""A picture in shades of grey."""


def tiff(values: np.ndarray, **options) -> Blob:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "TIFF", **options)
    return Blob("deep.tif", out.getvalue())


def grey(source: Blob) -> np.ndarray:
    pixels = read_rgb(source, 10**6)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    "values",
    [
        LEVELS.astype(np.int32),
        LEVELS.astype(np.int32) * 257,
        LEVELS.astype(np.int32) << 4,
        LEVELS.astype(np.int32) << 23,
        LEVELS.astype(np.uint16) * 257,
        LEVELS.astype(np.uint16) << 4,
        LEVELS.astype(np.float32) / 255,
        LEVELS.astype(np.float32),
        LEVELS.astype(np.float32) * 257,
        np.where(LEVELS == 0, np.nan, LEVELS / 255).astype(np.float32),
        np.where(LEVELS == 0, -np.inf, LEVELS / 255).astype(np.float32),
    ],
    ids=["8", "16", "12", "31", "sixteen", "twelve", "one", "byte", "word", "nan", "inf"],
)
def test_deep_grey_gives_the_picture(values):
    for options in ({}, {"compression": "tiff_lzw"}):
        assert np.abs(grey(tiff(values, **options)).astype(int) - LEVELS).max() <= 1


def test_deep_grey_without_a_scale_of_its_own_is_neither_black_nor_white():
    for values in (LEVELS.astype(np.float32) / 100 - 1, LEVELS.astype(np.int32) * 9 - 800, LEVELS * np.float32(1e30)):
        seen = grey(tiff(values))
        assert (np.diff(seen[0, :5].astype(int)) > 5).all() and seen.min() < 5 and seen.max() > 150
    assert not grey(tiff(np.full((4, 4), np.nan, np.float32))).any()
    assert (grey(tiff(np.where(LEVELS == 226, np.inf, LEVELS / 255).astype(np.float32))) == 255).any()
    assert not grey(tiff(np.zeros((4, 4), np.int32))).any()


def test_unsigned_numbers_of_32_bits():
    """Pillow reads those from 2 ** 31 up as below zero."""
    data = bytearray(tiff((LEVELS.astype(np.uint32) << 24).view(np.int32)).data)
    at = data.index(struct.pack("<HHIH", 339, 3, 1, 2))  # SampleFormat: 2 signed, 1 not
    data[at + 8] = 1
    assert (grey(Blob("unsigned.tif", bytes(data))) == LEVELS).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_picture_whose_description_is_damaged():
    out = io.BytesIO()
    Image.fromarray(LEVELS).save(out, "JPEG", quality=100)
    data = out.getvalue()
    rubbish = b"\xff\xe1\x00\x20Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 14
    assert np.array_equal(grey(Blob("a.jpg", data[:2] + rubbish + data[2:])), grey(Blob("a.jpg", data)))


def titled(path: Path, sound: np.ndarray | None = None) -> Path:
    """A file whose title is in Latin-1."""
    codecs = {"avi": ("mpeg4", "mp3"), "mkv": ("libx264", "aac"), "mp4": ("libx264", "aac")}.get(path.suffix[1:])
    if codecs:
        with av.open(str(path), "w", metadata_errors="surrogateescape") as container:
            container.metadata["title"] = "caf!"
            video = container.add_stream(codecs[0], rate=8)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
            for _ in range(8):
                picture = np.full((64, 64, 3), 200, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
    elif path.suffix == ".mp3":
        soundfile.write(path, tone(0.5), 16000)
        frame = b"TIT2\0\0\0\x05\0\0\x03caf!"  # 3: it says that it is UTF-8
        path.write_bytes(b"ID3\x04\0\0\0\0\0" + bytes([len(frame)]) + frame + path.read_bytes())
    else:
        with soundfile.SoundFile(path, "w", 16000, 1, format=path.suffix[1:].upper()) as file:
            file.title = "caf!"
            file.write(tone(0.5))
    data = path.read_bytes()
    assert b"caf!" in data
    path.write_bytes(data.replace(b"caf!", b"caf\xe9"))
    return path


@pytest.mark.parametrize("ending", ["avi", "mkv", "mp4"])
def test_a_title_that_is_not_utf8_in_a_video(tmp_path, ending):
    path = titled(tmp_path / f"a.{ending}")
    assert VideoProcessor(VideoConfig(image_size=28)).load(path).shape == (4, 3, 28, 28)
    assert MediaLimits().check(path).kind == guess_modality(path, ("video",)) == "video" and video_sound_problem(path)


@pytest.mark.parametrize("ending", ["wav", "mp3", "flac"])
def test_a_title_that_is_not_utf8_in_a_sound(tmp_path, ending):
    path = titled(tmp_path / f"a.{ending}")
    for source in (path, Blob("for_pyav.mp4", path.read_bytes())):
        assert AudioProcessor(AudioConfig()).load(source).any()
        assert MediaLimits().check(source).kind == guess_modality(source, ("audio",)) == "audio"
        assert video_sound_problem(source) is None


HIGH, LOW = tone(0.5, 48000, 3000.0), tone(0.5, 48000, 200.0)


def pitch(path: Path) -> float:
    samples, rate = read_sound(path, 60)
    return float(np.abs(np.fft.rfft(samples[0].numpy())).argmax() * rate / samples.shape[1])


@pytest.mark.parametrize("broken", [0, 1])
def test_the_first_sound_track_that_can_be_decoded(tmp_path, broken):
    """As beside the AAC track of recent phones, in either order."""
    path = without_decoder(tracks(tmp_path / "phone.mp4", [HIGH, LOW]), broken)
    assert pitch(path) == pytest.approx(200 if broken == 0 else 3000, abs=20)
    assert video_sound_problem(path) is None and MediaLimits().check(path, "video").sound
    assert VideoProcessor(VideoConfig(image_size=28)).load(path).shape == (4, 3, 28, 28)


def test_the_first_sound_track_in_which_there_is_something(tmp_path):
    assert pitch(tracks(tmp_path / "a.mkv", [None, LOW])) == pytest.approx(200, abs=20)
    assert pitch(tracks(tmp_path / "b.mkv", [HIGH, LOW])) == pytest.approx(3000, abs=20)


def no_decoder(folder: Path) -> Path:
    return without_decoder(tracks(folder / "only.mp4", [HIGH]), 0)


SILENT = {
    "no decoder": no_decoder,
    "mkv": lambda folder: tracks(folder / "a.mkv", [None]),
    "webm": lambda folder: tracks(folder / "a.webm", [None], "libopus"),
    "mp4": lambda folder: tracks(folder / "a.mp4", [None]),
    "fragmented": lambda folder: tracks(folder / "f.mp4", [None], movflags="frag_keyframe+empty_moov"),
}


@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT)
def test_a_sound_track_that_gives_nothing(tmp_path, make):
    path = make(tmp_path)
    for source in (path, Blob(path.name, path.read_bytes())):
        assert video_sound_problem(source) and not MediaLimits().check(source, "video").sound
        with pytest.raises(MediaError, match="is a video and has no sound"):
            MediaLimits().check(source, "audio")
        assert VideoProcessor(VideoConfig(image_size=28)).load(source).shape == (4, 3, 28, 28)
        with pytest.raises(MediaError, match="has (no sound|a sound track|no samples)"):
            AudioProcessor(AudioConfig()).load(source)


def test_what_is_said_of_it(tmp_path):
    assert video_sound_problem(no_decoder(tmp_path)) == "has a sound track in a codec that cannot be decoded here"
    silent = tracks(tmp_path / "a.mkv", [None])
    assert video_sound_problem(silent) == "has a sound track of which nothing can be decoded"
    assert video_sound_problem(write_video(tmp_path / "mute.mp4", [0] * 4)) == "has no sound track"
    assert video_sound_problem(write_video(tmp_path / "loud.mp4", [0] * 4, sound=tone(0.5))) is None
    (tmp_path / "text.mp4").write_text("no video")
    assert video_sound_problem(tmp_path / "text.mp4").startswith("cannot be read (")


def test_a_picture_track_without_a_decoder(tmp_path):
    path = write_video(tmp_path / "a.mp4", [0] * 4, sound=tone(0.5))
    data = path.read_bytes().replace(b"avc1", b"zzzz")
    with pytest.raises(MediaError, match=r"b\.mp4: has a picture track in a codec that cannot be decoded here"):
        VideoProcessor(VideoConfig(image_size=28)).load(Blob("b.mp4", data))
    with pytest.raises(MediaError, match=r"bytes: has a picture track in a codec that cannot be decoded here"):
        MediaLimits().check(data)
    assert AudioProcessor(AudioConfig()).load(Blob("b.mp4", data)).any()


STREAMED = {
    "data 0": {"data": 0},
    "both 0": {"data": 0, "RIFF": 0},
    "data 0, RIFF full": {"data": 0, "RIFF": 0xFFFFFFFF},
    "both full": {"data": 0xFFFFFFFF, "RIFF": 0xFFFFFFFF},
}


@pytest.mark.parametrize("lengths", STREAMED.values(), ids=STREAMED)
@pytest.mark.parametrize("name", ["a.wav", "a.mp4", "a"])
def test_a_wav_that_does_not_know_how_long_it_is(tmp_path, lengths, name):
    """Its writer could not go back, or was ended before it did."""
    path = write_wav(tmp_path / "whole.wav", tone(2.0))
    data, expected = bytearray(path.read_bytes()), AudioProcessor(AudioConfig()).load(path)
    for kind, length in lengths.items():
        at = data.index(kind.encode()) + 4
        data[at : at + 4] = struct.pack("<I", length)
    source = Blob(name, bytes(data))
    assert torch.equal(AudioProcessor(AudioConfig()).load(source), expected)
    assert MediaLimits().check(bytes(data)).seconds == pytest.approx(2.0) and video_sound_problem(source) is None
    with pytest.raises(MediaError, match="lasts 2 s or longer"):
        MediaLimits(max_seconds=1).check(bytes(data))


def test_a_flac_that_does_not_know_how_long_it_is(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(1.0), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    expected = AudioProcessor(AudioConfig()).load(Blob("a.flac", bytes(data)))
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)  # the count of samples in its STREAMINFO
    assert torch.equal(AudioProcessor(AudioConfig()).load(Blob("a.flac", bytes(data))), expected)


def test_a_wav_of_no_sound_has_none(tmp_path):
    empty = write_wav(tmp_path / "a.wav", np.zeros(0, np.float32)).read_bytes()
    for behind in (b"", b"LIST\x04\0\0\0INFO", b"note\x03\0\0\0abc\0"):
        with pytest.raises(MediaError, match="has no samples"):
            AudioProcessor(AudioConfig()).load(Blob("a.wav", empty + behind))


def test_a_wav_that_was_cut_off_stays_refused(tmp_path):
    with pytest.raises(MediaError, match="is truncated"):
        AudioProcessor(AudioConfig()).load(cut(write_wav(tmp_path / "a.wav", tone(1.0)), 0.5))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from tests.inference.tools import make_engine

    return make_engine(tmp_path_factory.mktemp("engine"))


def test_chat_goes_on_without_a_sound_that_cannot_be_heard(engine, tmp_path, caplog):
    from chatbridge.inference import ChatSession

    path = no_decoder(tmp_path)
    with caplog.at_level(logging.WARNING, "chatbridge"):
        reply = ChatSession(engine).say("what is it?", videos=[path])
    said = "only.mp4 has a sound track in a codec that cannot be decoded here; it is shown without sound"
    assert reply.remarks == [said] and said in caplog.text
    with pytest.raises(MediaError, match=r"only\.mp4: has a sound track in a codec .* leave its sound out"):
        ChatSession(engine).say("what is it?", videos=[path], sound=True)
    assert not ChatSession(engine).say("what is it?", videos=[path], sound=False).remarks
