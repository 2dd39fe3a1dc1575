"""Videos from files and from folders of frames, whole and broken."""

from __future__ import annotations

import random
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.processors.base import Blob, MediaError, Processor
from chatbridge.processors.video import VideoConfig, VideoProcessor
from chatbridge.processors.video_files import _with_av, _with_decord
from tests.media_files import cut, tone, write_video

REDS = [0, 60, 120, 180, 240]


def processor(**keys) -> VideoProcessor:
    defaults = {"image_size": 16, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    return VideoProcessor(VideoConfig(**(defaults | keys)))


def frames_seen(tensor: torch.Tensor) -> list[int]:
    """Which of REDS each frame of the tensor shows."""
    return [min(range(len(REDS)), key=lambda i: abs(REDS[i] - red)) for red in tensor[:, 0].mean((1, 2)).tolist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module")
def video(folder):
    return write_video(folder / "five.mp4", REDS, sound=tone())


def test_evaluation_and_training_frames(video):
    ours = processor()
    assert isinstance(ours, Processor)
    loaded = ours.load(video)
    assert loaded.shape == ours.shape == (4, 3, 16, 16) and loaded.dtype == torch.float32
    assert frames_seen(loaded) == [0, 1, 2, 3]
    assert frames_seen(processor(eval_sampling="groups").load(video)) == [0, 2, 3, 4]
    trained = {tuple(frames_seen(ours.load(video, Training(random.Random(seed))))) for seed in range(12)}
    assert trained == {(0, 2, 3, 4), (1, 2, 3, 4)}


@pytest.mark.parametrize("sampling", ["uniform", "headtail"])
def test_other_training_rules(video, sampling):
    ours = processor(train_sampling=sampling, num_frames=3)
    seen = frames_seen(ours.load(video, Training(random.Random(1))))
    assert len(seen) == 3 and seen == sorted(seen)


def test_short_video_repeats_its_last_frame(folder):
    short = write_video(folder / "two.mp4", REDS[1:3])
    assert frames_seen(processor().load(short)) == [1, 2, 2, 2]
    assert frames_seen(processor(eval_sampling="groups").load(short)) == [1, 2, 2, 2]
    assert frames_seen(processor().load(short, Training(random.Random(0)))) == [1, 2, 2, 2]


def test_pixels_are_those_of_the_frames(folder):
    """A wide video of two halves: squashed, it keeps them left and right, in the right colours."""
    path = write_video(folder / "wide.mp4", [200] * 4, size=(40, 120))
    for mode in (EVALUATION, Training(random.Random(0))):
        red, green, blue = processor().load(path, mode).mean((0, 2, 3)).tolist()
        assert abs(red - 200) < 8 and green < 8 and blue < 8


@pytest.mark.parametrize("width", [16, 48, 50, 72, 96])
def test_widths_that_decord_cannot_return(folder, width):
    """decord refuses frames of some small widths: PyAV gives them, the same frames."""
    path = write_video(folder / f"w{width}.mp4", REDS, size=(24, width))
    assert frames_seen(processor(eval_sampling="groups").load(path)) == [0, 2, 3, 4]
    assert frames_seen(processor(num_frames=7).load(path)) == [0, 1, 2, 3, 4, 4, 4]


def test_both_decoders_return_the_same_frames(video):
    wanted = [0, 2, 2, 4]
    both = [read(str(video), lambda _: wanted, print) for read in (_with_av, _with_decord)]
    for ours, theirs in zip(*both, strict=True):
        assert ours.shape == theirs.shape == (56, 56, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_crop_flip_is_one_for_all_frames(folder):
    path = folder / "frames_flip"
    path.mkdir()
    ramp = np.repeat(np.arange(0, 128, 2, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    for i in range(4):
        Image.fromarray(ramp).save(path / f"{i}.png")
    ours = processor(transform="crop_flip", image_size=32)
    for seed in range(4):
        frames = ours.load(path, Training(random.Random(seed)))
        assert all(torch.equal(frames[0], frame) for frame in frames)


@pytest.mark.parametrize("turn, side", [((0, 1, -1, 0), "top"), ((-1, 0, 0, -1), "right"), ((0, -1, 1, 0), "bottom")])
@pytest.mark.parametrize("read", [_with_av, _with_decord])
def test_camera_rotation(folder, read, turn, side):
    """The display matrix in a video's track header is obeyed by both decoders."""
    path = write_video(folder / "turned.mp4", [255] * 4, size=(64, 128), left_green=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # version and flags, times and track, reserved and volume: then 3 x 3 numbers
    a, b, c, d = (value << 16 for value in turn)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = read(str(path), lambda _: [0], print)[0].astype(int)
    assert frame.shape == ((64, 128, 3) if side == "right" else (128, 64, 3))
    green, (height, width) = frame[..., 1] - frame[..., 0], (frame.shape[0] // 2, frame.shape[1] // 2)
    halves = {"top": green[:height], "bottom": green[height:], "left": green[:, :width], "right": green[:, width:]}
    assert max(halves, key=lambda name: halves[name].mean()) == side


def test_bytes_equal_file(video):
    assert torch.equal(processor().load(Blob("five.mp4", video.read_bytes())), processor().load(video))


def test_webm(folder):
    path = write_video(folder / "five.webm", REDS, codecs=("libvpx", "libopus"))
    assert frames_seen(processor().load(path)) == [0, 1, 2, 3]


def test_folder_of_frames(folder):
    path = folder / "frames"
    path.mkdir()
    for i, red in enumerate(REDS):
        Image.new("RGB", (20 + i, 30), (red, 0, 0)).save(path / f"img_{i:04d}.jpg")
    (path / "notes.txt").write_text("not a frame")
    assert frames_seen(processor().load(path)) == [0, 2, 3, 4]
    assert frames_seen(processor(num_frames=7).load(path)) == [0, 1, 2, 3, 4, 4, 4]


def test_blank():
    assert processor(num_frames=2).blank().shape == (2, 3, 16, 16)
    assert not processor().blank().any()


def test_missing(folder):
    with pytest.raises(MediaError, match=r"no\.mp4: does not exist"):
        processor().load(folder / "no.mp4")


def test_folder_without_frames(folder):
    (folder / "nothing").mkdir()
    with pytest.raises(MediaError, match="nothing: is a folder without frames"):
        processor().load(folder / "nothing")


@pytest.mark.parametrize("content, reason", [(b"", "is empty"), (b"this is text\n" * 99, "is not a readable video")])
def test_not_a_video(folder, content, reason):
    (folder / "text.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=rf"text\.mp4: {reason}") as caught:
        processor().load(folder / "text.mp4")
    assert "\n" not in str(caught.value)


def test_sound_only(folder):
    (folder / "sound.mp4").write_bytes(write_sound(folder))
    with pytest.raises(MediaError, match=r"sound\.mp4: has no picture track"):
        processor().load(folder / "sound.mp4")


def write_sound(folder) -> bytes:
    import soundfile

    soundfile.write(folder / "sound.wav", tone(), 16000)
    return (folder / "sound.wav").read_bytes()


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("index_first", [False, True])
def test_truncated_mp4(folder, share, index_first):
    """Cut anywhere, with the index at the end or at the start: refused, never a video of repeated frames."""
    whole = write_video(folder / f"long{index_first}.mp4", REDS * 8, sound=tone(3), index_first=index_first)
    processor().load(whole)
    with pytest.raises(MediaError, match=r"cut_long\w+\.mp4: is truncated: it(s part| has no index)"):
        processor().load(cut(whole, share))


def test_truncated_webm(folder):
    whole = write_video(folder / "long.webm", REDS * 8, codecs=("libvpx", "libopus"))
    processor().load(whole)
    with pytest.raises(MediaError, match=r"cut_long\.webm: is truncated: its segment"):
        processor().load(cut(whole, 0.7))


def test_damaged_bytes_never_escape_as_other_errors(video):
    generator, refused = np.random.default_rng(2), 0
    whole = video.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for at in generator.integers(0, len(data), 30):
            data[at] = generator.integers(0, 256)
        try:
            assert processor().load(Blob("hurt.mp4", bytes(data))).shape == (4, 3, 16, 16)
        except MediaError as error:
            refused += 1
            assert str(error).startswith("hurt.mp4: ") and "\n" not in str(error)
    assert refused > 0


def test_a_header_that_announces_billions_of_frames(folder, video):
    """decord would allocate for them and end the process, unless asked not to."""
    data = bytearray(video.read_bytes())
    at = data.index(b"stts") + 12  # the number of frames of the first duration
    data[at] = 0x7F
    (folder / "many.mp4").write_bytes(data)
    with pytest.raises(MediaError, match=r"many\.mp4: is damaged: its header announces \d+ frames"):
        processor().load(folder / "many.mp4")


def test_too_large_frames(folder, video):
    with pytest.raises(MediaError, match="frames of 56 x 56 pixels, more than max_pixels = 100 allows"):
        processor(max_pixels=100).load(video)


def test_frames_that_are_larger_than_the_header_says(folder, video):
    data = bytearray(video.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 28  # width and height of the description of samples
    assert struct.unpack(">HH", data[at : at + 4]) == (56, 56)
    data[at : at + 4] = struct.pack(">HH", 8, 8)
    (folder / "small.mp4").write_bytes(data)
    with pytest.raises(MediaError, match=r"small\.mp4: has frames of 56 x 56 pixels, more than max_pixels = 100"):
        processor(max_pixels=100).load(folder / "small.mp4")


def test_a_header_that_does_not_tell_the_size(folder, video, monkeypatch):
    """The first frames are looked at then: as with the mp4 here, whose description of samples says 0 x 0."""
    data = bytearray(video.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    data[at : at + 4] = bytes(4)
    (folder / "unknown.mp4").write_bytes(data)
    monkeypatch.setattr("chatbridge.processors.video_files._with_decord", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(MediaError, match=r"unknown\.mp4: has frames of 56 x 56 pixels, more than max_pixels = 100"):
        processor(max_pixels=100).load(folder / "unknown.mp4")


@pytest.mark.parametrize("playlist", ["ffconcat version 1.0\nfile clip.mp4\n", "#EXTM3U\n#EXTINF:10,\nclip.mp4\n"])
def test_a_playlist_named_as_a_video_opens_no_other_file(folder, video, playlist):
    """FFmpeg would follow it to any file that the process can read."""
    shutil.copy(video, folder / "clip.mp4")
    file = folder / "list.mp4"
    file.write_text(playlist)
    with pytest.raises(MediaError, match=r"list\.mp4"):
        processor().load(file)
