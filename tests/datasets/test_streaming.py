"""Tar shards: every way of naming them, nothing lost or read twice, and every way in which they can be broken."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest

import train
from chatbridge.common.ledger import Ledger, TooManyBadSamples
from chatbridge.datasets.mixture import Blend
from chatbridge.datasets.shard_readers import LocalShards, MemberPlace, ShardLost, samples_in_sequence
from chatbridge.datasets.shards import Shard, find_shards
from chatbridge.datasets.streams import stream_of
from chatbridge.datasets.tars import scan
from chatbridge.processors.base import MediaError
from tests import tiny
from tests.datasets.tools import caption, names, picture, sample, shards, stream, take, tar_bytes, write_shards


def read_sample(shards_: LocalShards, number: int) -> tuple[str, dict[str, bytes]]:
    """Key and bytes of a sample of the first shard."""
    found = shards_.members(0, number)
    key = found.pop("__key__")
    return key, {e: shards_.read(part) if isinstance(part, MemberPlace) else part for e, part in found.items()}


def first_epoch(dataset, workers: int) -> list[list[str]]:
    """What every worker reads before its second epoch."""
    read = []
    for number in range(workers):
        one, ids = stream_of(dataset, 3, number, workers, None), []
        while True:
            example, _ = one.peek()
            if any(part.epoch for part in one.lists):
                break
            one.next()
            ids.append(example.tokens.id)
        read.append(ids)
    return read


def ledger_of(batches) -> list:
    return [entry for batch in batches for entry in batch.ledger]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[5, 9, 7], [4], [3, 3, 3, 3, 3, 3, 3, 3]])
def test_in_sequence_every_sample_is_read_by_one_worker_once(tmp_path, sizes, workers):
    ids = write_shards(tmp_path / "tars", sizes)
    if workers > sum(sizes):
        pytest.skip("more workers than samples")
    read = first_epoch(shards(tmp_path / "tars", access="sequence", shuffle=4), workers)
    assert sorted(i for part in read for i in part) == sorted(ids)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_by_number_every_sample_is_read_once_in_every_epoch(tmp_path, world):
    ids = write_shards(tmp_path / "tars", [5, 9, 6])
    ranks = [names(take(stream([shards(tmp_path / "tars", shuffle=6)], 10, r, world), 10)) for r in range(world)]
    read = [i for step in zip(*ranks, strict=True) for _, part in step for i in part]
    assert sorted(read[:20]) == sorted(read[20:]) == sorted(ids)
    assert read[:20] != read[20:] and read[:20] != ids


def test_samples_mix_inside_a_window_only(tmp_path):
    """Reading stays near one place of one shard: positions of a window lie in as many consecutive samples."""
    write_shards(tmp_path / "tars", [50] * 4)
    dataset = shards(tmp_path / "tars", shuffle=20, batch_size=20)
    for batch in take(stream([dataset], 10), 10):
        places = sorted(int(i.split("x")[1]) for i in batch.ids)
        assert len({i.split("x")[0] for i in batch.ids}) <= 2 and places != [int(i.split("x")[1]) for i in batch.ids]
    plain = shards(tmp_path / "tars", shuffle=0, batch_size=50)
    for batch in take(stream([plain], 4), 4):
        assert batch.ids == [f"{batch.ids[0].split('x')[0]}x{i}" for i in range(50)]


def test_lists_of_shards_get_their_shares(tmp_path):
    write_shards(tmp_path / "a", [6, 6])
    write_shards(tmp_path / "b", [5])
    for access in ("number", "sequence"):
        lists = {f"{tmp_path}/a/{{000..001}}.tar": 3.0, f"{tmp_path}/b/*.tar": 1.0}
        dataset = shards(tmp_path, shards=lists, access=access, batch_size=20, shuffle=3)
        assert dataset.length == (17 if access == "number" else None)
        seen = Counter(i[0] for batch in take(stream([dataset], 50), 50) for i in batch.ids)
        assert seen == {"a": 750, "b": 250}


def test_blend_is_exact_in_every_block():
    import numpy as np

    blend = Blend([1.0, 2.0, 0.0], 1, "x")
    lists, inner = blend.at(np.arange(3000))
    assert np.bincount(lists[1000:2000], minlength=3).tolist() == [333, 667, 0]
    for number in (0, 1):
        assert sorted(inner[lists == number].tolist()) == list(range((lists == number).sum()))


def test_ways_of_naming_shards(tmp_path):
    write_shards(tmp_path, [2, 3, 4], index=True)
    folder = Path(tmp_path)
    every = [str(tmp_path / f"{i:03d}.tar") for i in range(3)]
    assert [s.url for s in find_shards(["{000..002}.tar"], folder)] == every
    assert [s.url for s in find_shards(["*.tar"], folder)] == every
    assert [s.samples for s in find_shards(["index.json"], folder)] == [2, 3, 4]
    remote = find_shards(["https://a.example/{000..002}.tar"], None, folder / "index.json")
    assert [s.samples for s in remote] == [2, 3, 4] and remote[1].url == "https://a.example/001.tar"
    assert find_shards(["pipe:cat {a,b}.tar"], None) == [Shard("pipe:cat a.tar"), Shard("pipe:cat b.tar")]
    (tmp_path / "wids.json").write_text(json.dumps({"shardlist": [{"url": "000.tar", "nsamples": 2}]}))
    assert find_shards(["wids.json"], folder) == [Shard(every[0], 2)]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"shards": "s3://bucket/000.tar"}, "no way to open 's3://bucket/000.tar'.*'pipe:... s3://bucket/000.tar'"),
        ({"shards": "none*.tar"}, "no file is called 'none"),
        ({"shards": "gone.tar"}, "gone.tar: cannot be opened .*\n.*not one has a sample"),
        ({"shards": ["{tmp}/000.tar", "{tmp}/000.tar"]}, "is named twice"),
        ({"shards": "{tmp}/bad.json"}, "is not an index of shards"),
        ({"shards": "pipe:cat {tmp}/000.tar", "access": "number"}, "access: number needs local .tar files"),
        ({"shards": "{tmp}/000.tar", "access": "sequence", "limit": 3}, "limit needs shards that are read by number"),
        ({"shards": "{tmp}/cut.tar"}, "cut.tar: is cut off.*\n.*invalid: skip"),
        ({"shards": "{tmp}/index.json"}, "000.tar: has .* bytes and 4 samples, its index says .* and 5"),
        ({"shards": "{tmp}/text.tar"}, "text.tar: is damaged: no member header"),
        ({"shards": "{tmp}/nocaption.tar"}, "lacks caption"),
    ],
)
def test_training_refuses_at_start_what_is_known_then(tmp_path, keys, said):
    write_shards(tmp_path, [4, 4])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "001.tar").read_bytes()[:5000])
    (tmp_path / "bad.json").write_text('{"files": []}')
    (tmp_path / "text.tar").write_text("<html>404</html>" * 100)
    (tmp_path / "nocaption.tar").write_bytes(tar_bytes([{"0.jpg": picture(0), "0.json": b"{}"}]))
    (tmp_path / "index.json").write_text('{"shards": [{"file": "000.tar", "samples": 5, "bytes": 7}]}')

    def put(value):
        return [put(v) for v in value] if isinstance(value, list) else value.replace("{tmp}", str(tmp_path))

    keys = {name: put(value) if name == "shards" else value for name, value in keys.items()}
    with pytest.raises(ValueError, match=f"(?s)dataset 'shards': .*{said}"):
        shards(tmp_path, **keys)


def test_broken_shards_can_be_left_out_and_are_told(tmp_path):
    write_shards(tmp_path, [4, 4], index=True)
    cut_inside(tmp_path / "001.tar", 3)
    dataset = shards(tmp_path, invalid="skip")
    assert len(dataset) == 7
    assert len(dataset.skipped) == 1 and "001.tar: is cut off" in dataset.skipped[0]
    (tmp_path / "001.tar").unlink()
    assert len(shards(tmp_path, invalid="skip")) == 4


def test_layouts_of_other_tools(tmp_path):
    """img2dataset's metadata with the caption in .txt, several media of a kind, names with folders, no entry id."""
    meta = json.dumps({"key": "00017", "url": "http://a.example/x.jpg", "caption": None, "width": 8}).encode()
    pair = json.dumps({"image_id": ["left.jpg", "right.jpg"], "caption": "two"}).encode()
    ten = {f"many.{i}.jpg": picture(i) for i in range(11)}
    many = json.dumps({"image_id": [f"{i}.jpg" for i in range(11)], "caption": "eleven"}).encode()
    samples = [
        {"00017.jpg": picture(1), "00017.json": meta, "00017.txt": b" a cat \n"},
        {"sub/00018.png": picture(2), "sub/00018.txt": "Grüße".encode()},
        {"pair.0.jpg": picture(3), "pair.1.jpg": picture(4), "pair.json": pair},
        {**ten, "many.json": many},
        {"x" * 150 + ".jpg": picture(5), "x" * 150 + ".txt": b"a long name"},
    ]
    (tmp_path / "0.tar").write_bytes(tar_bytes(samples))
    dataset = shards(tmp_path)
    records = [dataset.record(i) for i in range(5)]
    assert [record.captions[0] for record in records] == ["a cat", "Grüße", "two", "eleven", "a long name"]
    assert [r.id for r in records[:2]] == ["00017", "sub/00018"] and records[4].id == "x" * 150
    files = [[str(dataset.media.find("image", f)).rsplit("/", 1)[1] for f in r.files_of("image")] for r in records]
    assert files[:3] == [["00017.jpg"], ["00018.png"], ["pair.0.jpg", "pair.1.jpg"]]
    assert files[3] == [f"many.{i}.jpg" for i in range(11)]
    assert dataset.read(records[1], dataset.kinds[0]).media["image"][0].shape == (1, 3, 8, 8)
    # A reference stays good after other samples were read: evaluation keeps many records at once.
    assert dataset.media.load("image", records[0].files_of("image")[0]).shape == (1, 3, 8, 8)


def test_both_ways_of_reading_give_the_same_samples(tmp_path):
    ids = write_shards(tmp_path, [5])
    near, far = shards(tmp_path, shuffle=0), shards(tmp_path, shuffle=0, access="sequence")
    one, two = (take(stream([dataset], 5), 5) for dataset in (near, far))
    assert names(one) == names(two) and one[0].ids == ids[:4]
    assert all((a.input_ids_BL == b.input_ids_BL).all() for a, b in zip(one, two, strict=True))
    assert all((a.media["image"] == b.media["image"]).all() for a, b in zip(one, two, strict=True))


def cut_inside(file: Path, number: int) -> None:
    """End a tar in the middle of a sample's picture."""
    file.write_bytes(file.read_bytes()[: scan(file).starts[number] + 700])


def damage(tmp_path, how: str) -> None:
    file = tmp_path / "001.tar"
    if how == "gone":
        file.unlink()
    elif how == "cut":
        cut_inside(file, 4)
    elif how == "replaced":
        file.write_bytes(b"no tar at all" * 1000)


@pytest.mark.parametrize("how", ["gone", "cut", "replaced"])
@pytest.mark.parametrize("access", ["number", "sequence"])
def test_a_shard_that_breaks_while_training_is_replaced_and_counted(tmp_path, how, access):
    """It is whole at the start; what it no longer gives comes from elsewhere, and every lost sample is counted."""
    write_shards(tmp_path, [8, 8, 8], index=True)
    dataset = shards(tmp_path, access=access, shuffle=4)
    damage(tmp_path, how)
    batches = take(stream([dataset], 12), 12)  # two epochs
    assert all(len(batch.ids) == 4 for batch in batches)
    entries = ledger_of(batches)
    kept = 4 if how == "cut" else 0
    assert {Path(entry.file).name for entry in entries} == {"001.tar"} and all(entry.reason for entry in entries)
    assert not {f"{tmp_path.name}1x{i}" for i in range(kept, 8)} & {i for b in batches for i in b.ids}
    lost = sum(entry.count for entry in entries)
    if access == "sequence":
        assert lost >= 2 * (8 - kept)  # both epochs (the stream is further than two epochs by now)
        assert entries[0].sample_id == f"001.tar#{kept}"
    else:
        assert lost >= 8 - kept and all(entry.replaced_by for entry in entries)


def test_a_url_that_fails_twice_and_then_works(tmp_path):
    ids = write_shards(tmp_path / "tars", [6])
    count = tmp_path / "count"
    count.write_text("0")
    script = tmp_path / "serve.sh"
    script.write_text(
        f'n=$(cat "{count}"); echo $((n+1)) > "{count}"\n'
        "if [ $n -eq 0 ]; then exit 1; fi\n"
        f'if [ $n -eq 1 ]; then head -c 14000 "{tmp_path}/tars/000.tar"; sleep 0.3; exit 1; fi\n'
        f'cat "{tmp_path}/tars/000.tar"\n'
    )
    dataset = shards(tmp_path, shards=f"pipe:sh {script}", shuffle=0, batch_size=6)
    (batch,) = take(stream([dataset], 1), 1)
    assert batch.ids == ids  # none twice, although the second try gave a part
    assert [entry.count for entry in batch.ledger] == [0, 0]
    assert all("opened again after" in entry.reason for entry in batch.ledger)
    ledger = Ledger(tmp_path / "ledger.jsonl", 0.0, grace=0, strict=True)
    ledger.add(["shards"] * 6, batch.ledger)  # what worked in the end is reported, and stops nothing
    assert ledger.retried["shards"] == 2 and ledger.replaced.total() + ledger.lost.total() == 0
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_a_url_that_never_works_gives_up(tmp_path):
    with pytest.raises(ValueError, match="dataset 'shards': no shard gives a sample .*exit 1"):
        take(stream([shards(tmp_path, shards="pipe:exit 1", retries=1)], 1), 1)


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens URLs with curl")
def test_shards_over_http(tmp_path):
    ids = write_shards(tmp_path / "tars", [5, 4])
    failures = {"/000.tar": 2}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "tars"))

        def do_GET(self):
            if failures.get(self.path, 0):
                failures[self.path] -= 1
                return self.send_error(404)
            return super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        pattern = f"http://127.0.0.1:{server.server_port}/{{000..001}}.tar"
        batches = take(stream([shards(tmp_path, shards=pattern, batch_size=9)], 1), 1)
    finally:
        server.shutdown()
    assert sorted(batches[0].ids) == sorted(ids)
    assert [entry.count for entry in ledger_of(batches)] == [0, 0]


def test_a_cut_remote_shard_costs_what_its_index_says_is_missing(tmp_path):
    ids = write_shards(tmp_path, [10], index=True)
    end = scan(tmp_path / "000.tar").starts[2] + 700
    cut = f"pipe:head -c {end} {tmp_path}/000.tar"
    (tmp_path / "urls.json").write_text(json.dumps({"shards": [{"file": cut, "samples": 10}]}))
    dataset = shards(tmp_path, shards=cut, index=str(tmp_path / "urls.json"), retries=1, shuffle=0, batch_size=1)
    read = take(stream([dataset], 20), 3)
    assert [i for batch in read for i in batch.ids] == [*ids[:2], ids[0]]
    entries = ledger_of(read)
    assert [entry.count for entry in entries] == [0, 8]
    assert all("is cut off inside" in entry.reason for entry in entries)


def test_a_remote_shard_that_ends_between_two_samples_is_noticed(tmp_path):
    """It reads like a shorter tar: only the missing end mark tells."""
    ids = write_shards(tmp_path, [5])
    end = scan(tmp_path / "000.tar").starts[3]
    dataset = shards(tmp_path, shards=f"pipe:head -c {end} {tmp_path}/000.tar", retries=0, shuffle=0, batch_size=2)
    read = take(stream([dataset], 4), 2)
    assert [i for batch in read for i in batch.ids] == ids[:2] * 2
    entry, *_ = ledger_of(read)
    assert entry.count == 1 and entry.sample_id.endswith("#2") and "no end mark" in entry.reason


def test_a_whole_tar_with_too_few_samples_is_noticed(tmp_path):
    ids = write_shards(tmp_path, [6])
    url, failures = f"pipe:cat {tmp_path}/000.tar", []
    assert [sample["__key__"] for _, sample in samples_in_sequence(Shard(url, 6), 3)] == ids[3:]
    with pytest.raises(ShardLost, match="ends after 6 samples, its index says 8"):
        list(samples_in_sequence(Shard(url, 8), 3, 1, 0.0, lambda *failure: failures.append(failure)))
    assert failures == [(6, "ends after 6 samples, its index says 8")]


def test_bad_samples_inside_good_shards(tmp_path):
    """Unreadable picture, malformed entry, no picture: each is passed over and reported, by either way of reading."""
    bad = [
        {**sample("cut", 1), "cut.jpg": picture(1)[:200]},
        {**sample("json", 2), "json.json": b"{"},
        {"alone.json": json.dumps({"caption": "nothing to see"}).encode()},
        {**sample("list", 3), "list.json": b"[1]"},
        {"none.jpg": picture(4)},
    ]
    good = [sample(f"good{i}", i) for i in range(12)]
    mixed = [part for pair in zip(good[1:6], bad, strict=True) for part in pair]
    (tmp_path / "0.tar").write_bytes(tar_bytes([good[0], *mixed, *good[6:]]))
    for access in ("number", "sequence"):
        batches = take(stream([shards(tmp_path, access=access, batch_size=6, shuffle=3)], 6), 6)
        entries = ledger_of(batches)
        assert {e.file.rsplit("/", 1)[1] for e in entries} == {
            "cut.jpg",
            "json.json",
            "alone",
            "list.json",
            "none.json",
        }
        assert all(e.count == 1 and e.replaced_by.startswith("good") for e in entries)
        assert all(i.startswith("good") for batch in batches for i in batch.ids)


def test_strict_and_too_many(tmp_path):
    good = [sample(f"good{i}", i) for i in range(9)]
    (tmp_path / "0.tar").write_bytes(tar_bytes([*good, {**sample("bad", 1), "bad.jpg": b"no"}]))
    (batch,) = [b for b in take(stream([shards(tmp_path, batch_size=5)], 2), 2) if b.ledger]
    with pytest.raises(TooManyBadSamples, match="'shards': strict reading stops at the first.*bad.jpg"):
        Ledger(None, 1.0, strict=True).add(["shards"] * 5, batch.ledger)
    loose = Ledger(None, 0.1, grace=5)
    with pytest.raises(TooManyBadSamples, match="max_bad_share allows 10.0%"):
        loose.add(["shards"] * 5, batch.ledger)


def test_a_lost_shard_is_judged_against_the_whole_dataset():
    from chatbridge.common.ledger import LedgerEntry

    lost = LedgerEntry("big", "7.tar#0", "7.tar", "gone", "x", count=1000)
    ledger = Ledger(None, 0.05, grace=10)
    ledger.sizes = {"big": 100_000}
    for _ in range(5):
        ledger.add(["big"] * 10, [lost])
    with pytest.raises(TooManyBadSamples, match="6.0%"):
        ledger.add(["big"] * 10, [lost])


def test_strict_training_names_the_first_and_stops(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, max_steps=30, max_bad_share=1.0, num_workers=1)
    (tmp_path / "media" / "3.jpg").write_bytes(b"")
    config = str(tiny.write_yaml(tmp_path, tree))
    assert train.main(["--cfg-path", config, "--strict"]) == 1
    said = capsys.readouterr().err
    assert "error: dataset 'images': strict reading stops at the first sample" in said and "3.jpg" in said
    assert "Traceback" not in said


def test_an_error_in_a_worker_is_one_clear_line(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, max_steps=30, num_workers=2)
    for file in (tmp_path / "media").glob("*.jpg"):
        file.write_bytes(b"")
    assert tiny.run(tmp_path, tree) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "10 samples in a row cannot be used" in lines[0]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"image_id": "/etc/passwd", "caption": "a"}, "'/etc/passwd': is not a file name below its media folder"),
        ({"image_id": "a/../../b.jpg", "caption": "a"}, "is not a file name below"),
        ({"image_id": "C:\\b.jpg", "caption": "a"}, "is not a file name below"),
        ({"image_id": "a\0.jpg", "caption": "a"}, "is not a file name below"),
        ({"image_id": "", "caption": "a"}, "'image_id' names no file"),
        ({"image_id": [], "caption": "a"}, "'image_id' names no file"),
        ({"image_id": ["1.jpg", " "], "caption": "a"}, "'image_id' names no file"),
        ({"image_id": {"a": 1}, "caption": "a"}, "'image_id' must be a file name, not dict"),
        ({"image_id": "1.jpg", "caption": {"text": "a"}}, "'caption' must be text, not dict"),
        ({"image_id": "1.jpg"}, "lacks caption"),
        (["1.jpg", "a"], "an entry must be a JSON object, not list"),
    ],
)
def test_malformed_entries_are_refused_before_training_with_file_index_and_reason(tmp_path, capsys, entry, said):
    tree = tiny.make_config(tmp_path, max_steps=2)
    file = Path(tree["datasets"]["images"]["annotations"])
    file.write_text(json.dumps([*json.loads(file.read_text()), entry]))
    assert tiny.run(tmp_path, tree) == 1
    logged = capsys.readouterr().err
    assert f"{file}: entry 12: " in logged and said in logged and "Traceback" not in logged
    assert not (tmp_path / "output" / "metrics.jsonl").exists()


def test_unknown_size_needs_a_weight(tmp_path):
    write_shards(tmp_path / "tars", [4])
    tree = tiny.make_config(tmp_path, max_steps=2)
    tree["datasets"] = {
        "far": {"builder": "webdataset", "shards": f"pipe:cat {tmp_path}/tars/000.tar", "kind": "ti-cap"}
    }
    from chatbridge.common.config import load_config
    from chatbridge.runners.assembly import Assembly

    assembly = Assembly(load_config(tiny.write_yaml(tmp_path, tree)))
    with pytest.raises(ValueError, match="datasets.far: .*give it a weight, or an index"):
        assembly.mixture(2, 0)


def test_the_scanner_agrees_with_tarfile_on_names_and_places(tmp_path):
    samples = [sample("ü" * 60 + f"{i}", i, wav=b"z" * (i * 700)) for i in range(5)]
    (tmp_path / "0.tar").write_bytes(tar_bytes(samples))
    table = scan(tmp_path / "0.tar")
    assert len(table) == 5 and table.problem is None
    dataset = shards(tmp_path)
    for i in range(5):
        key, found = read_sample(dataset.reader, i)
        assert {f"{key}.{ending}": data for ending, data in found.items()} == samples[i]
    assert caption(0)


def test_cutting_anywhere_never_gives_a_damaged_sample_silently(tmp_path):
    """Every cut is noticed, and what is still counted as whole reads as it was."""
    write_shards(tmp_path, [3])
    whole = (tmp_path / "000.tar").read_bytes()
    content = scan(tmp_path / "000.tar").starts[-1]
    originals = LocalShards([Shard(str(tmp_path / "000.tar"))])
    for end in range(0, content + 1, 97):
        file = tmp_path / "cut.tar"
        file.write_bytes(whole[:end])
        table = scan(file)
        assert table.problem is not None
        between = "no end mark" in table.problem  # whether the last sample is whole cannot be known there
        for i in range(len(table) - between):
            assert read_sample(LocalShards([Shard(str(file))]), i) == read_sample(originals, i)


def test_a_tar_that_is_cut_while_it_is_open(tmp_path):
    """Between a sample's entry and its picture, too: that is reported, and no part of a picture is taken for it."""
    write_shards(tmp_path, [3])
    file = tmp_path / "000.tar"
    shards_ = LocalShards([Shard(str(file))])
    found = shards_.members(0, 1)
    assert isinstance(found["json"], bytes) and len(shards_.read(found["jpg"])) == found["jpg"].size
    with file.open("r+b") as tar:
        tar.truncate(found["jpg"].start + 20)
    with pytest.raises(MediaError, match=r"000\.tar: is cut off before byte"):
        shards_.read(found["jpg"])
    with pytest.raises(MediaError, match=r"sample 1 is cut off: \d+ bytes are not there.*the file has changed"):
        shards_.members(0, 1)
    assert shards_.members(0, 0)["__key__"] == f"{tmp_path.name}0x0"
