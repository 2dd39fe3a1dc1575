"""Sounds from audio files and from videos, whole and broken."""

from __future__ import annotations

import random

import numpy as np
import pytest
import soundfile
import torch

from chatbridge.common.read_mode import Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.audio import AudioProcessor
from chatbridge.processors.base import Blob, MediaError, Processor
from chatbridge.processors.sound_files import read_sound
from tests.media_files import cut, tone, write_video, write_wav
from tests.variants import built

SILENCE = (np.log(np.finfo(np.float32).eps) - 15.41663) / (2 * 6.55582)


def processor(**keys) -> AudioProcessor:
    return built(PROCESSORS, "audio", **({"frames_per_clip": 128} | keys))


def loudest_mel(tensor: torch.Tensor, frames: int = 60) -> int:
    return int(tensor[0, :frames].mean(0).argmax())


def test_shape_and_padding(tmp_path):
    ours = processor()
    assert isinstance(ours, Processor)
    loaded = ours.load(write_wav(tmp_path / "a.wav", tone(1.0)))
    assert loaded.shape == ours.shape == (1, 128, 64) and loaded.dtype == torch.float32
    assert loaded[0, :98].abs().min(1).values.ge(0).all() and loaded[0, 97].any()
    assert not loaded[0, 98:].any(), "1 s is 98 frames; the rest is zero after normalisation"


@pytest.mark.parametrize("ending", ["flac", "ogg", "mp3"])
def test_other_audio_files(tmp_path, ending):
    soundfile.write(tmp_path / f"a.{ending}", (tone(1.0) * 2**15).astype(np.int16), 16000)
    expected = processor().load(write_wav(tmp_path / "a.wav", (tone(1.0) * 2**15).astype(np.int16)))
    ours = processor().load(tmp_path / f"a.{ending}")
    assert loudest_mel(ours) == loudest_mel(expected)
    if ending == "flac":
        torch.testing.assert_close(ours, expected)


def test_stereo(tmp_path):
    """Channel 0 as published; on request the mean."""
    left, right = tone(1.0, pitch=440), tone(1.0, pitch=3000)
    write_wav(tmp_path / "s.wav", np.stack([left, right], 1))
    mono = processor().load(write_wav(tmp_path / "l.wav", left))
    torch.testing.assert_close(processor().load(tmp_path / "s.wav"), mono)
    both = processor(channel="mean").load(tmp_path / "s.wav")
    assert not torch.allclose(both, mono, atol=0.5)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling(tmp_path, rate):
    """A tone keeps its pitch and its length at any rate."""
    reference = processor().load(write_wav(tmp_path / "a.wav", tone(1.0)))
    ours = processor().load(write_wav(tmp_path / f"{rate}.wav", tone(1.0, rate), rate))
    assert loudest_mel(ours) == loudest_mel(reference)
    assert ours[0, 97].any() and not ours[0, 98:].any()


def test_bytes_equal_file(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(1.0))
    assert torch.equal(processor().load(Blob("a.wav", path.read_bytes())), processor().load(path))
    movie = write_video(tmp_path / "a.mp4", [0] * 4, sound=tone(1.0))
    assert torch.equal(processor().load(Blob("a.mp4", movie.read_bytes())), processor().load(movie))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_sound_track_of_a_video(tmp_path, rate):
    """Decoded at its own rate, in time with the original, and cut to the length that the container states."""
    sound = tone(1.3, rate)
    path = write_video(tmp_path / "a.mp4", [0] * 5, sound=sound, rate=rate)
    decoded, own_rate = read_sound(path, 60)
    assert own_rate == rate and decoded.shape == (1, len(sound)), "codec padding is not sound"
    middle = slice(rate // 4, rate)
    assert np.corrcoef(decoded[0, middle], sound[middle])[0, 1] > 0.99
    reference = processor().load(write_wav(tmp_path / "a.wav", sound, rate))
    ours = processor().load(path)
    assert loudest_mel(ours) == loudest_mel(reference)
    assert (ours[0, 5:100, :40] - reference[0, 5:100, :40]).abs().median() < 0.2


def test_webm_sound_track(tmp_path):
    path = write_video(tmp_path / "a.webm", [0] * 5, sound=tone(1.0, 48000), rate=48000, codecs=("libvpx", "libopus"))
    assert loudest_mel(processor().load(path)) == loudest_mel(processor().load(write_wav(tmp_path / "a.wav", tone(1))))


def test_wrong_ending_is_no_obstacle(tmp_path):
    """A sound track under an audio file's name, and the other way round."""
    movie = write_video(tmp_path / "a.mp4", [0] * 4, sound=tone(1.0)).rename(tmp_path / "a.wav")
    assert processor().load(movie).any()
    sound = write_wav(tmp_path / "b.wav", tone(1.0)).rename(tmp_path / "b.mp4")
    assert processor().load(sound).any()


def frames(count: int) -> torch.Tensor:
    """Noise that gives exactly so many frames at 16 kHz."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 400 + 160 * (count - 1), generator=generator) * 0.1


@pytest.mark.parametrize("count, chosen", [(100, 0), (128, 0), (129, 0), (256, 0), (257, 1), (512, 1), (640, 2)])
def test_middle_clip_in_evaluation(count, chosen):
    ours, sound = processor(), frames(count)
    whole = (ours.bank.energies(sound * 2.0**15) - 15.41663) / (2 * 6.55582)
    expected = whole[chosen * 128 : (chosen + 1) * 128]
    torch.testing.assert_close(ours.clips(sound, 16000)[0, : len(expected)], expected, atol=1e-4, rtol=0)


def test_random_clips_in_training():
    """Every clip comes up, and no empty one, even when the length is an exact multiple of the clip's."""
    ours, sound = processor(), frames(3 * 128)
    clips = [ours.clips(sound, 16000, Training(random.Random(seed))) for seed in range(30)]
    assert len({clip.sum().item() for clip in clips}) == 3
    assert all(clip[0].any(1).all() for clip in clips)
    original = processor(compat="original")
    empty = [not original.clips(sound, 16000, Training(random.Random(seed))).any() for seed in range(30)]
    assert any(empty), "the original has an empty fourth clip"


def test_more_clips_than_sound():
    two = processor(clips=2).clips(frames(100), 16000)
    assert two.shape == (2, 128, 64) and two[0].any() and not two[1].any()


def test_blank_is_silence_through_the_pipeline():
    blank = processor(clips=2).blank()
    torch.testing.assert_close(blank, torch.full((2, 128, 64), float(SILENCE)))


def test_missing(tmp_path):
    with pytest.raises(MediaError, match=r"no\.wav: does not exist"):
        processor().load(tmp_path / "no.wav")


def test_video_without_sound(tmp_path):
    path = write_video(tmp_path / "mute.mp4", [0] * 4)
    with pytest.raises(MediaError, match=r"mute\.mp4: has no sound track"):
        processor().load(path)


@pytest.mark.parametrize("ending", ["wav", "aiff"])
def test_zero_samples(tmp_path, ending):
    soundfile.write(tmp_path / f"zero.{ending}", np.zeros(0, np.float32), 16000)
    with pytest.raises(MediaError, match=rf"zero\.{ending}: has no samples"):
        processor().load(tmp_path / f"zero.{ending}")


def test_zero_bytes(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(MediaError, match=r"a\.wav: is empty"):
        processor().load(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["text.wav", "text.mp4", "text.mp3"])
def test_text(tmp_path, name):
    (tmp_path / name).write_text("this is not a sound\n" * 50)
    with pytest.raises(MediaError, match=rf"{name}: is not a readable sound or video") as caught:
        processor().load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_very_short_is_padded(tmp_path):
    loaded = processor().load(write_wav(tmp_path / "a.wav", tone(0.01)))
    assert loaded[0, 0].any() and not loaded[0, 1:].any()
    with pytest.raises(MediaError, match=r"a\.wav: is too short, under 25 ms"):
        processor(compat="original").load(tmp_path / "a.wav")


def test_not_numbers(tmp_path):
    for value in (np.nan, np.inf, -3e38):
        sound = tone(0.5)
        sound[100] = value
        write_wav(tmp_path / "odd.wav", sound, subtype="FLOAT")
        with pytest.raises(MediaError, match=r"odd\.wav: has samples that are not sound \(peak (nan|inf|3e\+38)"):
            processor().load(tmp_path / "odd.wav")


def test_loud_is_not_infinite(tmp_path):
    write_wav(tmp_path / "loud.wav", tone(0.5) * 3e6, subtype="FLOAT")
    assert processor().load(tmp_path / "loud.wav").isfinite().all()


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("ending", ["wav", "flac", "mp4"])
def test_truncated(tmp_path, ending, share):
    if ending == "mp4":
        path = write_video(tmp_path / "a.mp4", [0] * 4, sound=tone(2.0), index_first=True)
    else:
        path = tmp_path / f"a.{ending}"
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 32000), 16000)
    with pytest.raises(MediaError, match=rf"cut_a\.{ending}: is (truncated|not a readable)"):
        processor().load(cut(path, share))


def test_streamed_wav_has_no_length_and_is_read(tmp_path):
    """Written to a pipe, a WAV says 0xFFFFFFFF bytes of sound: not a truncated one."""
    path = write_wav(tmp_path / "a.wav", tone(1.0))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4
    expected = processor().load(path)
    assert torch.equal(processor().load(Blob("pipe.wav", bytes(data))), expected)


@pytest.mark.parametrize(
    "make", [lambda p: write_wav(p / "a.wav", tone(2)), lambda p: write_video(p / "a.mp4", [0] * 4, sound=tone(2))]
)
def test_too_long(tmp_path, make):
    with pytest.raises(MediaError, match=r"max_seconds = 1$"):
        processor(max_seconds=1.0).load(make(tmp_path))


def test_damaged_bytes_never_escape_as_other_errors(tmp_path):
    generator, refused = np.random.default_rng(3), 0
    soundfile.write(tmp_path / "a.flac", tone(0.5), 16000)
    wholes = [write_video(tmp_path / "a.mp4", [0] * 4, sound=tone(0.5)), tmp_path / "a.flac"]
    for path in wholes * 20:
        data = bytearray(path.read_bytes())
        for at in generator.integers(0, len(data), 20):
            data[at] = generator.integers(0, 256)
        try:
            assert processor().load(Blob(path.name, bytes(data))).shape == (1, 128, 64)
        except MediaError as error:
            refused += 1
            assert str(error).startswith(f"{path.name}: ") and "\n" not in str(error)
    assert refused > 0


def test_wrong_statistics():
    with pytest.raises(ValueError, match="std must be above 0"):
        processor(std=0.0)
