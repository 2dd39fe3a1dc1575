"""Downloads against a server on this machine: resuming, damage, and what an offline user is told."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chatbridge.weights import WeightsError
from chatbridge.weights.__main__ import main
from chatbridge.weights.download import cache_folder, download, fetch
from chatbridge.weights.manifest import PublishedWeights, find, manifest, markdown

CONTENT = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves `content`; of the first `breaks` answers, only `cut` bytes."""

    content, tag, breaks, cut, ranges, status = CONTENT, '"v1"', 0, 300_000, True, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/eva_vit_g.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        if len(server.asked) <= server.breaks:
            body = body[: server.cut]
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def get(server, target, **options):
    return download(server.url, target, wait=0.0, **options)


def leftovers(folder):
    return [p.name for p in folder.iterdir() if ".part" in p.name and not p.name.endswith(".lock")]


class TestResuming:
    def test_whole(self, server, tmp_path):
        file = get(server, tmp_path / "w.pth", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
        assert file.read_bytes() == CONTENT and server.asked == [None] and not leftovers(tmp_path)
        assert get(server, tmp_path / "w.pth") == file and len(server.asked) == 1, "it is there: nobody is asked"

    def test_broken_connections_go_on(self, server, tmp_path):
        server.breaks = 3
        assert get(server, tmp_path / "w.pth").read_bytes() == CONTENT
        assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]

    def test_a_later_run_goes_on(self, server, tmp_path):
        server.breaks = 2
        with pytest.raises(WeightsError, match="600,000 bytes are kept at .*w.pth.part, a further try goes on"):
            get(server, tmp_path / "w.pth", attempts=2)
        assert not (tmp_path / "w.pth").exists(), "half a download never has the file's name"
        assert get(server, tmp_path / "w.pth").read_bytes() == CONTENT
        assert server.asked[-1] == "bytes=600000-"

    def test_a_killed_run_that_had_everything(self, server, tmp_path):
        server.breaks, server.cut = 1, len(CONTENT) - 1
        with pytest.raises(WeightsError):
            get(server, tmp_path / "w.pth", attempts=1)
        with (tmp_path / "w.pth.part").open("ab") as part:
            part.write(CONTENT[-1:])
        assert get(server, tmp_path / "w.pth").read_bytes() == CONTENT

    def test_another_version_starts_anew(self, server, tmp_path):
        server.breaks = 1
        with pytest.raises(WeightsError):
            get(server, tmp_path / "w.pth", attempts=1)
        server.content, server.tag = CONTENT[::-1], '"v2"'
        assert get(server, tmp_path / "w.pth").read_bytes() == CONTENT[::-1]

    def test_a_server_that_cannot_resume(self, server, tmp_path):
        server.breaks, server.ranges = 1, False
        assert get(server, tmp_path / "w.pth").read_bytes() == CONTENT


class TestRefused:
    def test_another_content(self, server, tmp_path):
        with pytest.raises(WeightsError, match="w.pth.part' is not what .* should be: its SHA-256 differs"):
            get(server, tmp_path / "w.pth", sha256="0" * 64)
        assert not (tmp_path / "w.pth").exists()

    def test_another_size(self, server, tmp_path):
        (tmp_path / "w.pth").write_bytes(b"<html>")
        with pytest.raises(WeightsError, match=r"w.pth' has 6 bytes, .* has 1,024,000; remove it"):
            get(server, tmp_path / "w.pth", size=len(CONTENT))

    def test_gone(self, server, tmp_path):
        server.status = 404
        with pytest.raises(WeightsError, match="answers 404 Not Found; has it moved"):
            get(server, tmp_path / "w.pth")
        assert len(server.asked) == 1

    def test_offline(self, tmp_path):
        with pytest.raises(WeightsError) as error:
            download("http://127.0.0.1:9/eva.pth", tmp_path / "eva.pth", size_text="1.89 GiB", attempts=2, wait=0.0)
        said = str(error.value)
        assert "cannot fetch http://127.0.0.1:9/eva.pth (" in said
        assert f"on a machine with network (1.89 GiB) and put it at {tmp_path / 'eva.pth'}" in said


class TestManifest:
    def test_the_table_in_the_documentation(self):
        text = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
        assert markdown() in text, "paste the output of python -m chatbridge.weights manifest"

    def test_entries(self):
        assert len({entry.save_as for entry in manifest().values()}) == len(manifest())
        assert all(entry.sha256 is None or len(entry.sha256) == 64 for entry in manifest().values())
        with pytest.raises(WeightsError, match="did you mean 'eva_vit_g'"):
            find("eva_vit")
        with pytest.raises(ValueError, match="exactly one of url, hub, page"):
            PublishedWeights("a", "b", "c", "d", "e", url="x", page="y")

    def test_through_the_cache(self, server, tmp_path, monkeypatch):
        monkeypatch.setenv("CHATBRIDGE_CACHE", str(tmp_path / "cache"))
        entry = PublishedWeights("eva", "EVA", "x", "eva.pth", "1 MB", url=server.url, bytes=len(CONTENT))
        assert cache_folder() == tmp_path / "cache"
        assert fetch(entry) == tmp_path / "cache" / "eva.pth"
        for _ in range(2):
            assert fetch(entry, tmp_path / "weights").read_bytes() == CONTENT
        assert len(server.asked) == 1

    def test_by_hand(self, tmp_path, capsys):
        assert main(["download", "beats", "--to", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert "fetched by hand: get BEATs_iter3_plus_AS2M.pt from https://" in said
        assert f"put it at {tmp_path / 'BEATs_iter3_plus_AS2M.pt'}" in said
        (tmp_path / "BEATs_iter3_plus_AS2M.pt").write_bytes(b"")
        assert main(["download", "beats", "--to", str(tmp_path)]) == 0

    def test_the_hub_offline(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        for name, command in (
            ("vicuna_v1_5", "hf download lmsys/vicuna-13b-v1.5"),
            ("eva_clip_g", "hf download QuanSun"),
        ):
            assert main(["download", name, "--to", str(tmp_path / "weights")]) == 1
            said = capsys.readouterr().err
            assert said.startswith("error: cannot fetch") and command in said and str(tmp_path / "weights") in said

    def test_listing(self, capsys):
        assert main(["manifest"]) == 0
        assert "| `eva_vit_g` |" in capsys.readouterr().out
        assert main(["manifest", "--json"]) == 0
        assert '"blip2_flant5xxl"' in capsys.readouterr().out
        assert main(["download", "eva"]) == 1
