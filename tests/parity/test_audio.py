"""Filter banks and clips against the original's."""

from __future__ import annotations

import pytest
import soundfile
import torch

from chatbridge.common.batch import stack_media
from chatbridge.common.read_mode import EVALUATION
from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.base import MediaError
from chatbridge.processors.sampling import pick, split_groups
from tests.variants import MODES, built

RAW = {"atol": 5e-3, "rtol": 0}
NORMALISED = {"atol": 5e-4, "rtol": 0}


def processor(case, clips=1, compat="default"):
    c = case.info["config"]
    keys = {"mel_bins": c["melbins"], "frames_per_clip": c["target_length"], "mean": c["mean"], "std": c["std"]}
    return built(PROCESSORS, "audio", compat, clips=clips, **keys)


@pytest.mark.golden("audio_[!mt]*")
def test_raw_features(case):
    bank = processor(case).bank
    raw = bank.energies(bank.resampled(case.inputs["waveform"][:1] * 2.0**15, case.info["config"]["sample_rate"]))
    torch.testing.assert_close(raw, case.outputs["fbank_raw"], **RAW)


@pytest.mark.golden("audio_[!mt]*")
def test_resampling(case):
    expected = case.outputs.get("resampled", case.inputs["waveform"])[:1]  # stored where the rate was not 16 kHz
    ours = processor(case).bank.resampled(case.inputs["waveform"][:1], case.info["config"]["sample_rate"])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.golden("audio_[!mt]*")
@pytest.mark.parametrize("compat", MODES)
def test_clips(case, compat):
    """Padding after normalisation, middle clip of each group; both modes agree wherever clips are not all empty."""
    rate = case.info["config"]["sample_rate"]
    for name, expected in case.outputs.items():
        if name.startswith("mapper_eval_n"):
            clips = int(name.removeprefix("mapper_eval_n"))
            ours = processor(case, clips, compat).clips(case.inputs["waveform"], rate)
            torch.testing.assert_close(ours, expected, **NORMALISED)


@pytest.mark.golden("audio_[!mt]*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clips_computed_on_the_device(case, dtype):
    """Sounds that fill a batch, all at once, as on a CPU and as on a GPU."""
    rate = case.info["config"]["sample_rate"]
    for name, expected in case.outputs.items():
        if name.startswith("mapper_eval_n"):
            ours = processor(case, int(name.removeprefix("mapper_eval_n")))
            sounds = [ours.raw(case.inputs["waveform"], rate), ours.raw(case.inputs["waveform"][:, :9000], rate)]
            first, _ = stack_media([*sounds, sounds[0]]).analysed(dtype, 8)[[0, 2]]
            torch.testing.assert_close(first, expected, **NORMALISED)


@pytest.mark.golden("audio_[!mt]*")
def test_clips_from_a_file(case, tmp_path):
    """The same numbers when the waveform comes from a WAV file of 32-bit floats."""
    rate, path = case.info["config"]["sample_rate"], tmp_path / "a.wav"
    soundfile.write(path, case.inputs["waveform"].T.numpy(), rate, subtype="FLOAT")
    ours = processor(case, compat="original").load(path)
    torch.testing.assert_close(ours, case.outputs["mapper_eval_n1"], **NORMALISED)


@pytest.mark.golden("audio_[!mt]*")
def test_groups_and_choice(case):
    length = case.info["config"]["target_length"]
    for name, expected in case.info["info"].items():
        if not isinstance(expected, dict) or "groups" not in expected:
            continue
        clips, frames = int(name.removeprefix("n")), expected["frames"]
        original = processor(case, clips, "original")
        available = frames // length + 1
        groups = split_groups(max(available, clips), clips)
        assert [list(g) for g in groups] == expected["groups"]
        chosen = pick(groups, EVALUATION)
        assert original.choose(available) == chosen == [g[i] for g, i in zip(groups, _positions(expected), strict=True)]
        ours = processor(case, clips)
        full = -(-frames // length)
        taken = ours.choose(full)
        assert sum(i < full for i in taken) == min(full, clips), "an empty clip where there is a full one"


def _positions(expected):
    """The sidecar may give the choice as positions in each group, or as clip numbers: both name the same clip."""
    groups, choice = expected["groups"], expected["eval_choice"]
    if all(c in g for c, g in zip(choice, groups, strict=True)):
        return [g.index(c) for c, g in zip(choice, groups, strict=True)]
    return choice


@pytest.mark.golden("audio_tiny*")
@pytest.mark.parametrize("clips", [1, 2, 3])
def test_too_short(case, clips):
    waveform, rate = case.inputs["waveform"], case.info["config"]["sample_rate"]
    assert "None" in case.info["info"][f"mapper_eval_n{clips}"]
    with pytest.raises(ValueError, match="too short"):
        processor(case, clips, "original").clips(waveform, rate)
    ours = processor(case, clips).clips(waveform, rate)
    assert ours.shape == (clips, case.info["config"]["target_length"], case.info["config"]["melbins"])
    assert ours[0, 0].any() and not ours[0, 1:].any(), "one frame, padded up to its 25 ms"


def test_missing_file(golden, tmp_path):
    """The original turns a missing file into zeros; we refuse it, and do as it did with compat: original."""
    for expected in (golden("audio_missing").info[k] for k in ("mapper", "demo_missing_path")):
        clips, frames, mel = expected["shape"]
        config = {"clips": clips, "frames_per_clip": frames, "mel_bins": mel}
        original = built(PROCESSORS, "audio", "original", **config).load(tmp_path / "none.wav")
        assert expected["all_zero"] and original.shape == (clips, frames, mel) and not original.any()
        with pytest.raises(MediaError, match=r"none\.wav: does not exist"):
            built(PROCESSORS, "audio", **config).load(tmp_path / "none.wav")
