"""The commands of sound corpora, each on a miniature replica of what a user downloads."""

from __future__ import annotations

from dataset_prep import audiocaps, clotho, wavcaps
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import dropped, fails, loads, manifest, run

# WavCaps


def test_wavcaps_reads_its_four_sources(tmp_path, capsys):
    source = tmp_path / "WavCaps"

    def metadata(folder, name, data, bare=False):
        tree = data if bare else {"num_captions_per_audio": 1, "data": data}
        corpora.write_json(source / "json_files" / folder / name, tree)

    def entry(name, caption, **more):
        return {"id": name, "caption": caption, "description": "raw", "duration": 0.3, **more}

    # The archives unpack into deep folders of their maker's.
    deep = source / "audio" / "AudioSet_SL" / "mnt" / "scratch" / "AudioSet_SL_flac"
    for path in corpora.odd_sounds(deep, ["Y-abc", "Y_d.e", "Yfgh", "Yijk", "Ylmn"]):
        assert path.exists()
    sl = [entry("Y-abc.wav", 'A "dog", barking'), entry("Y_d.e.wav", "Rain – 雨"), entry("Yfgh.wav", "")]
    sl += [entry("Yijk.wav", "in a test set"), entry("Ylmn.wav", "music"), entry("Yxyz.wav", "taken down")]
    sl += [entry("Y-abc.wav", "again"), {"caption": "no id"}]
    metadata("AudioSet_SL", "as_final.json", sl)
    corpora.odd_sounds(source / "audio" / "BBC_Sound_Effects", ["NHU0001", "b", "c", "d", "e"])
    metadata("BBC_Sound_Effects", "bbc_final.json", [entry("NHU0001", "wind")])
    corpora.odd_sounds(source / "audio" / "FreeSound", ["2219", "b", "c", "d", "9"])
    metadata(
        "FreeSound", "fsd_final.json", [entry("2219", "a bell", tags=["x"]), entry(9, "a plane", audio="x/9.flac")]
    )
    corpora.odd_sounds(source / "audio" / "SoundBible", ["77", "b", "c", "d", "e"])
    metadata("SoundBible", "sb_final.json", [entry("77", "hyena")], bare=True)
    listed = corpora.write_json(tmp_path / "blacklist.json", {"AudioSet": ["Yijk.wav"], "FreeSound": ["1"]})

    run(wavcaps, source, "--out", tmp_path / "data", "--exclude", listed, "--check", "decode")
    found = loads(tmp_path / "data" / "audioset_sl", "audio")
    assert {k: e["caption"] for k, e in found.items()} == {
        "Y-abc": 'A "dog", barking',
        "Y_d.e": "Rain – 雨",
        "Ylmn": "music",
    }
    assert found["Y-abc"]["audio_id"] == "mnt/scratch/AudioSet_SL_flac/Y-abc.wav"
    assert dropped(tmp_path / "data" / "audioset_sl") == {
        "Yfgh": "empty caption",
        "Yijk": "on the exclusion list",
        "Yxyz": "missing media",
        "Y-abc": "duplicate id",
        "": "malformed annotation",
    }
    for name, ids in (("bbc", {"NHU0001"}), ("freesound", {"2219", "9"}), ("soundbible", {"77"})):
        assert set(loads(tmp_path / "data" / name, "audio")) == ids

    (source / "json_files" / "SoundBible" / "sb_final.json").unlink()
    run(wavcaps, source, "--out", tmp_path / "some", "--sources", "soundbible,bbc")
    assert "soundbible: skipped" in capsys.readouterr().out
    assert not (tmp_path / "some" / "soundbible").exists()
    assert "there is no source 'bcc'" in fails(capsys, wavcaps, source, "--out", tmp_path / "x", "--sources", "bcc")


# AudioCaps and Clotho


def test_audiocaps(tmp_path):
    corpora.odd_sounds(tmp_path / "audio", ["-abc", "Yb_c", "def_30", "ghi_30000_40000", "777"])
    corpora.video(tmp_path / "audio" / "sub" / "vid.mp4", sound=True)
    corpora.video(tmp_path / "audio" / "mute.mp4")
    rows = [
        {"audiocap_id": n, "youtube_id": y, "start_time": s, "caption": c}
        for n, y, s, c in [
            (1, "-abc", 30, 'Thunder, "loud"'), (2, "b_c", 0, "Bees"), (3, "def", 30, "A"), (4, "def", 30, "B"),
            (5, "def", 30, ""), (6, "ghi", 30, "C"), (777, "jkl", 10, "D"), (8, "vid", 10, "E"),
            (9, "mute", 10, "F"), (10, "gone", 10, "G"), (11, "", 10, "H"),
        ]
    ]  # fmt: skip
    source = corpora.write_csv(tmp_path / "train.csv", rows)
    run(audiocaps, source, "--out", tmp_path / "audiocaps")
    found = loads(tmp_path / "audiocaps", "audio")
    assert {k: e["audio_id"] for k, e in found.items()} == {
        "-abc_30": "-abc.wav",
        "b_c_0": "Yb_c.wav",
        "def_30": "def_30.wav",
        "ghi_30": "ghi_30000_40000.wav",
        "jkl_10": "777.flac",
        "vid_10": "sub/vid.mp4",
    }
    assert found["def_30"]["caption"] == ["A", "B"]
    assert manifest(tmp_path / "audiocaps")["reasons"] == {
        "empty caption": 1,
        "malformed annotation": 1,
        "unreadable media": 1,
        "missing media": 1,
    }


def test_clotho(tmp_path, capsys):
    corpora.odd_sounds(tmp_path / "evaluation", ["a, b & 'c'", "Été 雨", " spaced ", "d", "e"])
    captions = {f"caption_{n}": f"caption {n}, with a comma" for n in range(1, 6)}
    names = ["a, b & 'c'.wav", "Été 雨.wav", " spaced .wav", "gone.wav"]
    rows = [{"file_name": name, **captions} for name in names]
    rows.append({"file_name": "d.wav", **dict.fromkeys(captions, "")})
    rows.append({"file_name": "e.flac", **captions, "caption_2": "", "caption_3": captions["caption_1"]})
    corpora.write_csv(tmp_path / "clotho_captions_evaluation.csv", rows)
    run(clotho, tmp_path, "--split", "evaluation", "--out", tmp_path / "out")
    found = loads(tmp_path / "out", "audio")
    assert [len(e["caption"]) for e in found.values()] == [5, 5, 5, 3]
    assert dropped(tmp_path / "out") == {"d.wav": "empty caption", "gone.wav": "missing media"}
    said = fails(capsys, clotho, tmp_path, "--split", "validation", "--out", tmp_path / "x")
    assert "no media folder" in said
