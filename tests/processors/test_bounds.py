"""Bounds that are held before memory is taken or time is spent: sides, scans, rates, channels, kinds of files."""

from __future__ import annotations

import io
import math
import random
import struct
import zlib

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from PIL import Image

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.inference.limits import LimitExceeded, MediaLimits
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    Blob,
    ImageConfig,
    ImageProcessor,
    MediaError,
    VideoConfig,
    VideoProcessor,
    image,
    resampling,
)
from chatbridge.processors.picture_files import MAX_SCANS, count_scans, read_rgb, scans_problem
from chatbridge.processors.sound_files import read_sound
from tests.media_files import tone, write_video, write_wav

LIMIT = 80_000_000


def png(width: int, height: int, data: bytes = bytes(99)) -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width, height", [(1, 80_000_000), (70_000, 1), (65_536, 3)])
def test_a_picture_with_a_long_side(width, height):
    """Made 224 pixels wide before it is made 224 high, the first would have 18 thousand million."""
    blob = Blob("thin.png", png(width, height))
    reason = rf"thin\.png: has {width} x {height} pixels, a longer side than max_side = 65535 allows"
    for mode in (EVALUATION, Training(random.Random(0))):
        with pytest.raises(MediaError, match=reason):
            ImageProcessor(ImageConfig()).load(blob, mode)
    with pytest.raises(LimitExceeded, match=rf"{width} x {height}"):
        MediaLimits().check(blob)
    with pytest.raises(MediaError, match="max_side = 50 allows"):
        ImageProcessor(ImageConfig(max_side=50)).load(Blob("a.png", png(51, 2)))


def test_an_icon_whose_picture_is_larger_than_it_says():
    inside = png(70_000, 1, bytes(210_001))
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    with pytest.warns(UserWarning), pytest.raises(MediaError, match="max_side = 65535"):
        read_rgb(Blob("a.ico", head + inside), LIMIT)


def test_frames_with_a_long_side(tmp_path):
    path = write_video(tmp_path / "a.mp4", [0] * 4, size=(32, 96))
    with pytest.raises(MediaError, match=r"has frames of 96 x 32 pixels, a longer side than max_side = 90 allows"):
        VideoProcessor(VideoConfig(max_side=90)).load(path)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("turned", [False, True])
def test_of_a_long_picture_the_middle_is_resized(monkeypatch, resize, turned):
    strip = np.random.default_rng(0).integers(0, 256, (4, 903, 3), np.uint8)
    strip = strip.transpose(1, 0, 2) if turned else strip
    ours = image.PixelTransform(ImageConfig(image_size=32, transform="crop_flip", eval_resize=resize))
    monkeypatch.setattr(image, "LONGEST_SHAPE", 302)
    whole, seen, middle = ours([strip], None), [], image._middle
    monkeypatch.setattr(image, "_middle", lambda *args: seen.append(middle(*args)) or seen[-1])
    for shape, kept in ((31, 125), (5, 21)):
        monkeypatch.setattr(image, "LONGEST_SHAPE", shape)
        assert torch.allclose(ours([strip], None), whole, atol=1e-5) and max(seen.pop().shape) == kept
    ours([np.zeros((9, 45, 3), np.uint8)], None)
    assert not seen, "ordinary ones are resized whole"


def progressive(scans: int, hidden: bytes = b"") -> bytes:
    """A progressive JPEG of so many scans; `hidden` stands between two of them."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        out, "JPEG", progressive=True
    )
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    there = data.count(b"\xff\xda")
    return data[:-2] + hidden + data[last:-2] * (scans - there) + b"\xff\xd9"


def test_progressive_scans_are_counted():
    comment = b"\xff\xfe\x00\x08\xff\xd9\xff\xd9\xff\xd9"  # an end mark that is none
    for scans in (20, MAX_SCANS, MAX_SCANS + 1, 500):
        for hidden in (b"", comment, b"\xff\xff\xff"):
            assert count_scans(progressive(scans, hidden)) == min(scans, MAX_SCANS + 1)
    data = progressive(20)
    assert count_scans(data + b"\xff\xda\x00\x02" * 500) == 20, "a film behind a picture is not part of it"
    assert count_scans(b"\xff\xda" * 500) == 0 and scans_problem(b"", 1) is None
    assert scans_problem(progressive(20), 80_000_000) is None
    assert scans_problem(progressive(21), 80_000_000).startswith("has more than 20 progressive scans")


def test_too_many_scans_are_refused_undecoded(monkeypatch, tmp_path):
    assert read_rgb(Blob("a.jpg", progressive(MAX_SCANS)), LIMIT).shape == (64, 64, 3)
    monkeypatch.setattr("chatbridge.processors.picture_files.decode_plain", lambda _: pytest.fail("decoded"))
    data = progressive(MAX_SCANS + 1)
    with pytest.raises(MediaError, match=r"a\.jpg: has more than 100 progressive scans"):
        read_rgb(Blob("a.jpg", data), LIMIT)
    (tmp_path / "b.png").write_bytes(data)
    with pytest.raises(MediaError, match=r"b\.png: has more than 100 progressive scans"):
        ImageProcessor(ImageConfig()).load(tmp_path / "b.png")
    with pytest.raises(LimitExceeded, match="has more than 100 progressive scans"):
        MediaLimits().check(tmp_path / "b.png")


RATES = [8000, 11025, 12000, 22050, 24000, 32000, 37800, 44100, 48000, 88200, 96000, 176400, 192000]


@pytest.mark.parametrize("rate", RATES)
def test_ordinary_rates_are_resampled_as_by_torchaudio(rate):
    samples = torch.randn(2, rate // 4, generator=torch.Generator().manual_seed(rate))
    for dtype in (torch.float32, torch.float64):
        theirs = torchaudio.transforms.Resample(rate, 16000, dtype=None if dtype == torch.float32 else dtype)
        assert torch.equal(resampling.resample(samples.to(dtype), rate, 16000), theirs(samples.to(dtype)))
    assert resampling.reach(rate, 16000) == theirs.width


@pytest.mark.parametrize("rate", [441, 3200, 999, 100, 1601, 161])
def test_without_a_table_the_numbers_are_the_same(rate):
    samples = torch.randn(2, 3 * rate, generator=torch.Generator().manual_seed(rate), dtype=torch.float64)
    theirs = torchaudio.transforms.Resample(rate, 160, dtype=torch.float64)(samples)
    common = math.gcd(rate, 160)
    ours = resampling._without_table(samples, rate // common, 160 // common)
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("rate", [44101, 15999, 16001, 47999, 767_999, 5513])
def test_odd_rates_take_no_table(rate, monkeypatch):
    """torchaudio's would have up to 12,000 million weights."""
    monkeypatch.setattr(torchaudio.transforms, "Resample", lambda *_, **__: pytest.fail("a table"))
    length, pitch = rate // 2, min(rate, 16000) / 8
    wave = torch.sin(2 * math.pi * pitch / rate * torch.arange(length, dtype=torch.float64))[None]
    ours = resampling.resample(wave, rate, 16000)
    expected = torch.sin(2 * math.pi * pitch / 16000 * torch.arange(ours.shape[1], dtype=torch.float64))
    edge = ours.shape[1] // 6
    assert ours.shape[1] == math.ceil(length * 16000 / rate)
    assert (ours[0] - expected)[edge:-edge].abs().max() < 2e-3


def at_rate(path, rate: int) -> Blob:
    """A WAV whose header says another rate."""
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    return Blob("odd.wav", bytes(data))


@pytest.mark.parametrize("place", ["worker", "device"])
def test_a_sound_at_an_odd_rate_is_a_sound(tmp_path, place):
    ours = AudioProcessor(AudioConfig(preprocess_on=place, frames_per_clip=64))
    for rate, near in ((44101, 44100), (15999, 16000)):
        path = write_wav(tmp_path / "a.wav", tone(1.0, near), near)
        loaded, expected = (ours.load(source, Training(random.Random(0))) for source in (at_rate(path, rate), path))
        if place == "device":
            loaded, expected = loaded.finished()[0], expected.finished()[0]
        assert (loaded - expected).abs().mean() < 0.03


@pytest.mark.parametrize("rate", [1, 99, 768_001, 2**31 - 1])
def test_rates_that_no_sound_has(tmp_path, rate):
    blob = at_rate(write_wav(tmp_path / "a.wav", tone(0.1)), rate)
    for source in (blob, Blob("for_pyav.mp4", blob.data)):
        with pytest.raises(MediaError, match=rf"has a sample rate of {rate:,} Hz by its header"):
            AudioProcessor(AudioConfig(max_seconds=1e9)).load(source)
        with pytest.raises(MediaError, match=rf"has a sample rate of {rate:,} Hz|lasts"):
            MediaLimits().check(source)
    with pytest.raises(MediaError, match=r"odd\.wav: is not a readable sound"):
        AudioProcessor(AudioConfig()).load(at_rate(write_wav(tmp_path / "a.wav", tone(0.1)), 0))


def test_channels(tmp_path):
    for name in ("a.wav", "a.mp4"):
        path = tmp_path / name
        soundfile.write(path, np.zeros((99, 65), np.int16), 16000, format="WAV")
        with pytest.raises(MediaError, match="has 65 channels, more than 64"):
            AudioProcessor(AudioConfig()).load(path)
        with pytest.raises(MediaError, match="has 65 channels, more than 64"):
            MediaLimits().check(path)


def test_samples_of_all_channels(tmp_path):
    """A silent FLAC of 4 MB can have an hour of eight channels at 655 kHz: 75 GB."""
    soundfile.write(tmp_path / "a.flac", np.zeros((65_535, 8), np.int16), 655_350)
    for name in ("a.flac", "a.mp4"):
        blob = Blob(name, (tmp_path / "a.flac").read_bytes())
        with pytest.raises(MediaError, match=r"has [\d,]+ samples in its channels, max_seconds = 1 allows 192,000"):
            AudioProcessor(AudioConfig(max_seconds=1.0)).load(blob)
        assert AudioProcessor(AudioConfig()).load(blob) is not None


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 9, 64])
def test_channels_come_as_they_are(tmp_path, channels):
    """PyAV ends the process when it is asked for eight channels or more behind one another."""
    sound = np.random.default_rng(0).integers(-9000, 9000, (999, channels), np.int16)
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    for name in ("a.wav", "for_pyav.mp4"):
        samples, _ = read_sound(Blob(name, (tmp_path / "a.wav").read_bytes()), 10)
        assert np.array_equal(samples.numpy() * 2**15, sound.T)


def test_a_damaged_count_of_samples_takes_no_memory(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(0.5), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21:26] = bytes([data[21] | 0x0F]) + b"\xff" * 4  # 68,719,476,735
    with pytest.raises(MediaError, match=r"a\.flac: is 4294967 s long or longer"):
        AudioProcessor(AudioConfig()).load(Blob("a.flac", bytes(data)))


def test_a_file_of_endless_parts(monkeypatch, tmp_path):
    monkeypatch.setattr("chatbridge.processors.containers.MOST_PARTS", 100)
    boxes = b"\x00\x00\x00\x08ftyp" + b"\x00\x00\x00\x08free" * 200
    with pytest.raises(MediaError, match=r"a\.mp4: has more than .* parts"):
        VideoProcessor(VideoConfig()).load(Blob("a.mp4", boxes))
    chunks = b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 200
    with pytest.raises(MediaError, match=r"a\.wav: has more than .* parts"):
        AudioProcessor(AudioConfig()).load(Blob("a.wav", chunks))
