"""Media that the model's device preprocesses: how far they are from what workers make of them, and how they travel."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import train
from chatbridge.common.batch import RawMedia, stack_media
from chatbridge.common.read_mode import Training
from chatbridge.models.bridge import Bridge, BridgeConfig
from chatbridge.models.encoders.beats import BeatsConfig
from chatbridge.models.projectors import QFormerConfig
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    Blob,
    ImageConfig,
    ImageProcessor,
    Processor,
    VideoConfig,
    VideoProcessor,
)
from tests.media_files import tone, write_video
from tests.tiny import BEATS, PERCEIVER, json_lines, make_config, write_yaml

LEVEL = 1 / 255
"""What two roundings to 8 bits, of rows and of columns, can amount to at most."""


def noise(height: int, width: int, strength: int = 255, seed: int = 0) -> Blob:
    """A picture that is all edges, stored without loss."""
    pixels = np.random.default_rng(seed).integers(0, 2, (height, width, 3), np.uint8) * strength
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return Blob("noise.png", out.getvalue())


def both(config, kind=ImageProcessor) -> tuple[Processor, Processor]:
    """The processor with either place of preprocessing."""
    return kind(replace(config, preprocess_on="worker")), kind(replace(config, preprocess_on="device"))


@pytest.mark.parametrize("transform", ["squash", "crop_flip"])
@pytest.mark.parametrize("size", [(28, 28), (29, 31), (40, 60), (300, 200), (20, 90)])
def test_pixels_differ_by_rounding(transform, size):
    config = ImageConfig(image_size=28, transform=transform, mean=[0.0] * 3, std=[1.0] * 3)
    worker, device = both(config)
    for seed in range(4):
        source = noise(*size, seed=seed)
        expected, raw = (
            worker.load(source, Training(random.Random(seed))),
            device.load(source, Training(random.Random(seed))),
        )
        assert isinstance(raw, RawMedia) and raw.shape == worker.shape and raw.pixels.dtype == torch.uint8
        distance = (raw.finished()[0] - expected).abs()
        assert distance.max() <= 1.01 * LEVEL and distance.mean() <= 0.4 * LEVEL
        if size == (28, 28) and transform == "squash":
            assert torch.equal(raw.finished()[0], expected), "nothing to resize, nothing to round"


def test_bicubic_pixels_are_the_same():
    worker, device = both(ImageConfig(image_size=28, train_resize="bicubic"))
    raw = device.load(noise(50, 40), Training(random.Random(0)))
    assert torch.equal(raw.finished()[0], worker.load(noise(50, 40), Training(random.Random(0))))


def test_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", [0, 80, 160, 240] * 3, size=(96, 128), left_green=True)
    worker, device = both(VideoConfig(image_size=28), VideoProcessor)
    raw, expected = device.load(path, Training(random.Random(1))), worker.load(path, Training(random.Random(1)))
    assert raw.shape == worker.shape and raw.pixels.shape == (1, 4, 28, 28, 3)
    assert ((raw.finished()[0] - expected).abs() * worker.transform.std).max() <= 1.01 * LEVEL


def test_evaluation_gives_finished_media(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    cases = [
        (*both(ImageConfig(image_size=28)), noise(40, 50)),
        (*both(AudioConfig(frames_per_clip=64), AudioProcessor), tmp_path / "a.wav"),
    ]
    for worker, device, source in cases:
        assert torch.equal(device.load(source), worker.load(source))
        assert torch.equal(device.blank(), worker.blank())


def write_sounds(folder) -> list:
    """Sounds of all lengths, rates, channels and sample formats, as they come together in a batch."""
    rng, paths = np.random.default_rng(0), []
    for rate in (8000, 16000, 22050, 32000, 44056, 48000):
        for seconds in (0.004, 0.3, 0.64, 0.655, 2.3):
            for channels, subtype in ((1, "PCM_16"), (2, "PCM_16"), (1, "FLOAT")):
                samples = rng.normal(0, 0.1, (round(seconds * rate), channels))
                paths.append(folder / f"{len(paths)}.wav")
                soundfile.write(paths[-1], samples.astype(np.float32), rate, subtype=subtype)
    return paths


@pytest.mark.parametrize("keys", [{}, {"clips": 2}, {"channel": "mean"}])
@pytest.mark.parametrize("dtype, together", [(torch.float32, 1), (torch.float32, 16), (torch.float64, 16)])
def test_filter_banks_of_a_batch(tmp_path, keys, dtype, together):
    """As on the CPU and as on a GPU: all sounds of a batch at once give what each gives by itself."""
    worker, device = both(AudioConfig(frames_per_clip=64, **keys), AudioProcessor)
    paths = write_sounds(tmp_path)
    expected = torch.stack([worker.load(path, Training(random.Random(i))) for i, path in enumerate(paths)])
    raw = stack_media([device.load(path, Training(random.Random(i))) for i, path in enumerate(paths)])
    assert len(raw) == len(paths) and raw.shape == worker.shape
    torch.testing.assert_close(raw.analysed(dtype, together), expected, atol=5e-4, rtol=0)


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    """Half the bytes of floats, and the very same samples."""
    soundfile.write(tmp_path / "a.flac", tone(0.5, 44100), 44100, subtype="PCM_16")
    _, device = both(AudioConfig(frames_per_clip=64), AudioProcessor)
    raw = device.load(tmp_path / "a.flac", Training(random.Random(0)))
    samples, _ = soundfile.read(tmp_path / "a.flac", dtype="int16")
    assert raw.samples.dtype == torch.int16 and raw.samples[0, 0].tolist() == samples.tolist()


def test_a_clip_carries_its_own_samples_only(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 44100 * 30), 44100)
    worker, device = both(AudioConfig(frames_per_clip=64), AudioProcessor)
    for seed in range(5):
        raw = device.load(tmp_path / "a.wav", Training(random.Random(seed)))
        assert raw.samples.shape[-1] < 0.7 * 44100
        expected = worker.load(tmp_path / "a.wav", Training(random.Random(seed)))
        torch.testing.assert_close(raw.finished()[0], expected, atol=1e-5, rtol=0)


def test_media_that_differ_are_finished_before_they_share_a_batch():
    worker, device = both(ImageConfig(image_size=8))
    other = ImageProcessor(ImageConfig(image_size=8, preprocess_on="device", mean=[0.5] * 3, std=[0.5] * 3))
    media = [p.load(noise(8, 8), Training(random.Random(0))) for p in (device, device, other, worker)]
    assert isinstance(stack_media(media[:2]), RawMedia)
    for mixed in (media[1:3], media[2:]):
        stacked = stack_media(mixed)
        assert stacked.dtype == torch.float32
        for row, medium in zip(stacked, mixed, strict=True):
            assert torch.equal(row, medium.finished()[0] if isinstance(medium, RawMedia) else medium)


def test_a_bridge_finishes_what_it_is_given(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    config = BridgeConfig(
        modalities=["audio"],
        encoder=BeatsConfig(**{k: v for k, v in BEATS.items() if k != "name"}),
        perceiver=QFormerConfig(**PERCEIVER),
    )
    torch.manual_seed(0)
    bridge = Bridge(config, 16).eval()
    worker, device = both(AudioConfig(frames_per_clip=64), AudioProcessor)
    raw = stack_media([device.load(tmp_path / "a.wav", Training(random.Random(0)))] * 3)
    assert torch.equal(
        bridge(raw), bridge(torch.stack([worker.load(tmp_path / "a.wav", Training(random.Random(0)))] * 3))
    )


def test_half_precision_regions_do_not_reach_the_filter_banks(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5, 44100), 44100)
    _, device = both(AudioConfig(frames_per_clip=64), AudioProcessor)
    raw = device.load(tmp_path / "a.wav", Training(random.Random(0)))
    outside = raw.finished()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(raw.finished(), outside)


@pytest.mark.parametrize("config", [ImageConfig, VideoConfig, AudioConfig])
def test_the_earlier_name_of_the_key(config):
    assert config(finish="device") == config(preprocess_on="device") != config()


def test_a_run_learns_the_same_either_way(tmp_path):
    """Through YAML, workers, the loop and the bridges: the losses agree to what rounding makes of them."""
    losses = {}
    for place in ("worker", "device"):
        tree = make_config(tmp_path, max_steps=6, num_workers=1)
        for name in ("image", "audio"):
            tree["processors"][name]["preprocess_on" if name == "image" else "finish"] = place
        output = tmp_path / place
        options = ["--options", f"run.output_dir={output}"]
        assert train.main(["--cfg-path", str(write_yaml(tmp_path, tree)), *options]) == 0
        rows = json_lines(output / "metrics.jsonl")
        losses[place] = torch.tensor([row["loss"] for row in rows if "loss" in row])
    assert len(losses["device"]) == 6
    torch.testing.assert_close(losses["device"], losses["worker"], atol=2e-3, rtol=0)
