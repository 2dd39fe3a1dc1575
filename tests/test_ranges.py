"""Going on inside a shard without reading what lies before, where the place it comes from allows that."""

from __future__ import annotations

import gzip
import http.server
import re
import shutil
import threading
from collections.abc import Iterator

import pytest

from chatbridge.datasets.shards import Shard, scan
from chatbridge.datasets.tar_streams import ShardLost, samples
from tests.reading_tools import shards, stream, take, through_disk, write_shards

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens URLs with curl")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on this machine, with ranges or without, and remembers what was asked for.

    Attributes:
        asked: (path, first byte) of every request; cut: serve so many bytes of the next answers, then hang up.
    """

    def __init__(self, folder, ranges: bool = True):
        self.folder, self.ranges = folder, ranges
        self.asked: list[tuple[str, int]] = []
        self.cut: list[int] = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = (self.server.folder / self.path[1:]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        self.server.asked.append((self.path, first))
        if wanted and self.server.ranges:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            data = data[first:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.server.cut.pop(0)] if self.server.cut else data)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve() -> Iterator:
    running = []

    def start(folder, **options) -> Server:
        running.append(Server(folder, **options))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("shuffle", [0, 3])
def test_a_restart_goes_on_inside_a_remote_shard(tmp_path, serve, ranges, shuffle):
    write_shards(tmp_path, [20])
    server = serve(tmp_path, ranges=ranges)
    keys = {"shards": f"{server.url}/000.tar", "shuffle": shuffle, "batch_size": 2}
    whole = [batch.ids for batch in take(stream([shards(tmp_path, **keys)], 20), 15)]
    server.asked.clear()
    first = stream([shards(tmp_path, **keys)], 20)
    assert [batch.ids for batch in take(first, 7)] == whole[:7]
    state = through_disk(first.state_dict())
    del first
    server.asked.clear()
    second = stream([shards(tmp_path, **keys)], 20)
    second.load_state_dict([state])
    rest = take(second, 8)
    assert [batch.ids for batch in rest] == whole[7:] and not any(batch.ledger for batch in rest)
    starts = scan(tmp_path / "000.tar").starts
    before = starts[14 - shuffle]
    assert server.asked[0][1] >= before, "from the window's first sample on"
    assert all(first >= before or first == 0 for _, first in server.asked)


def test_states_without_offsets_still_serve(tmp_path):
    write_shards(tmp_path, [20])
    keys = {"access": "sequence", "shuffle": 3, "batch_size": 2}
    whole = [batch.ids for batch in take(stream([shards(tmp_path, **keys)], 20), 15)]
    first = stream([shards(tmp_path, **keys)], 20)
    take(first, 7)
    state = through_disk(first.state_dict())
    (part,) = state["lanes"]["shards"][0]["lists"]
    part["runs"], part["next"] = [run[:3] for run in part["runs"]], part["next"][:2]
    second = stream([shards(tmp_path, **keys)], 20)
    second.load_state_dict([state])
    assert [batch.ids for batch in take(second, 8)] == whole[7:]


def numbers(url: str, start: int = 0, offset: int = 0, retries: int = 2, known: int | None = None, told=None):
    """The numbers and keys of the samples that a shard gives."""
    failed = lambda number, reason: told.append((number, reason)) if told is not None else None  # noqa: E731
    found = samples(Shard(url, known), start, retries, 0.0, failed, offset)
    return [(number, sample["__key__"]) for number, sample in found]


def test_a_download_that_breaks_off_goes_on_where_it_broke(tmp_path, serve):
    ids = write_shards(tmp_path, [12])
    starts = scan(tmp_path / "000.tar").starts
    server, told = serve(tmp_path), []
    server.cut = [starts[5] + 700, starts[4]]
    found = numbers(f"{server.url}/000.tar", told=told)
    assert found == list(enumerate(ids))
    lost = [number for number, _ in told]
    assert len(lost) == 2 and lost[0] <= 5 and lost[0] <= lost[1]  # the network may lose what was on its way
    assert [first for _, first in server.asked] == [0, starts[lost[0]], starts[lost[1]]]


def test_local_shards_are_entered_at_the_offset(tmp_path):
    ids = write_shards(tmp_path, [9])
    starts = scan(tmp_path / "000.tar").starts
    data = bytearray((tmp_path / "000.tar").read_bytes())
    data[: starts[4]] = b"\xff" * starts[4]  # what lies before is not looked at
    (tmp_path / "000.tar").write_bytes(data)
    assert numbers(str(tmp_path / "000.tar"), 4, starts[4]) == list(enumerate(ids))[4:]
    with pytest.raises(ShardLost):
        numbers(str(tmp_path / "000.tar"), 4)


def test_compressed_shards_are_read_from_their_beginning(tmp_path, serve):
    ids = write_shards(tmp_path, [9])
    (tmp_path / "000.tar.gz").write_bytes(gzip.compress((tmp_path / "000.tar").read_bytes()))
    server = serve(tmp_path)
    found = list(samples(Shard(f"{server.url}/000.tar.gz"), 0, 0, 0.0, lambda *_: None))
    assert [sample["__key__"] for _, sample in found] == ids
    assert {sample["__span__"] for _, sample in found} == {(0, 0)}


def test_a_shard_that_was_replaced_is_read_from_its_beginning(tmp_path, serve):
    """What begins at the offset is no header any longer: the sample is looked for by its number."""
    write_shards(tmp_path / "old", [9])
    starts = scan(tmp_path / "old" / "000.tar").starts
    ids = write_shards(tmp_path / "newer", [9])
    server, told = serve(tmp_path / "newer"), []
    found = numbers(f"{server.url}/000.tar", 4, starts[4] + 512, told=told)
    assert found == list(enumerate(ids))[4:] and len(told) == 1


def test_too_few_samples_behind_an_offset(tmp_path, serve):
    ids, told = write_shards(tmp_path, [6]), []
    starts = scan(tmp_path / "000.tar").starts
    server = serve(tmp_path)
    assert numbers(f"{server.url}/000.tar", 3, starts[3], known=6) == list(enumerate(ids))[3:]
    with pytest.raises(ShardLost, match="ends after 6 samples, its index says 8"):
        numbers(f"{server.url}/000.tar", 3, starts[3], retries=1, known=8, told=told)


def test_an_answer_of_other_bytes_is_refused(tmp_path, serve, monkeypatch):
    write_shards(tmp_path, [6])
    monkeypatch.setattr(Handler, "send_header", _lying(Handler.send_header))
    server = serve(tmp_path)
    with pytest.raises(ShardLost, match="the server sends others"):
        numbers(f"{server.url}/000.tar", 3, scan(tmp_path / "000.tar").starts[3], retries=0)


def _lying(send):
    return lambda self, name, value: send(self, name, "bytes 7-8/9" if name == "Content-Range" else value)
