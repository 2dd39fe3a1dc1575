"""The page under load: ``python -m benchmarks.demo_load --seconds 120``.

Starts ``demo.py`` as a process of its own and lets several users talk to it at once over loopback, each with
gradio's own client, about media of their own. Every answer is compared with what the model says to the same questions
when nobody else is there; the server's memory is looked at every second. Prints figures, and ends with status 1 when
anything went wrong. Seconds until the page can be used are measured before the load begins: until it is served, and,
where Chromium and playwright are here, until the text box is on the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from gradio_client import Client, handle_file
from PIL import Image, ImageDraw

from chatbridge.demo import view
from chatbridge.inference import ChatSession, Engine

ROOT = Path(__file__).parent.parent
MIB = 2**20
COLOURS = ("red", "blue", "green", "yellow", "white", "purple", "orange", "cyan")
ROUNDS = 4
"""Conversations of a user before another one comes in its place."""


@dataclass(frozen=True)
class Script:
    """What a user does, and what must come of it.

    Attributes:
        picture, sound: its media. answers: to both of them, to a further question, and to that without the picture.
    """

    picture: Path
    sound: Path
    answers: tuple[str, str, str]

    FIRST, SECOND = "what do you see and hear?", "what do you see?"


def write_scripts(engine: Engine, folder: Path, count: int) -> list[Script]:
    """Media for so many users, none like another, and what the model says about them when it is alone."""
    scripts = []
    for number in range(count):
        picture, sound = folder / f"{number}.png", folder / f"{number}.wav"
        canvas = Image.new("RGB", (64, 64), "black")
        draw, box = ImageDraw.Draw(canvas), (12 + number, 12, 50, 50 - number)
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=COLOURS[number % len(COLOURS)])
        canvas.save(picture)
        times = np.arange(16000) / 16000
        soundfile.write(sound, 0.3 * np.sin(2 * np.pi * (150 + 170 * number) * times), 16000)
        session = ChatSession(engine)
        first = session.say(Script.FIRST, images=[picture], audios=[sound]).text
        second = session.say(Script.SECOND).text
        session.mute(0)
        scripts.append(Script(picture, sound, (first, second, session.regenerate().text)))
    return scripts


@dataclass
class Load:
    """What happened.

    Attributes:
        answers, seconds: how many, and how long each took. wrong: answers that were not the expected ones.
        errors: what was raised. memory: seconds since the beginning, and PSS of the server in bytes.
    """

    answers: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Bytes by which the second half of the time lies above the quarter before it, medians."""
        end = self.memory[-1][0]
        before = [pss for at, pss in self.memory if end / 4 <= at < end / 2]
        after = [pss for at, pss in self.memory if at >= end / 2]
        return statistics.median(after) - statistics.median(before)


def run(address: str, server: int, scripts: list[Script], seconds: float) -> Load:
    """Users, one for each script, for so long.

    Args:
        address: of the page. server: its process.
    """
    load, lock, started = Load(), threading.Lock(), time.monotonic()

    def work(script: Script) -> None:
        while time.monotonic() - started < seconds:
            try:
                client = Client(address, verbose=False, analytics_enabled=False, download_files=False)
                for _ in range(ROUNDS):
                    _conversation(client, script, load, lock)
                    if time.monotonic() - started >= seconds:
                        break
                client.close()
            except Exception as error:
                with lock:
                    load.errors.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(script,)) for script in scripts]
    for worker in workers:
        worker.start()
    process = psutil.Process(server)
    while any(worker.is_alive() for worker in workers):
        load.memory.append((time.monotonic() - started, _pss(process)))
        time.sleep(min(1.0, seconds / 20))
    return load


def _conversation(client: Client, script: Script, load: Load, lock: threading.Lock) -> None:
    files = [handle_file(script.picture), handle_file(script.sound)]
    steps = (
        ("/ask", [{"text": script.FIRST, "files": files}]),
        ("/ask", [{"text": script.SECOND, "files": []}]),
        ("/mute", [[1]]),
        ("/regenerate", []),
    )
    expected = iter(script.answers)
    for name, arguments in steps:
        started = time.monotonic()
        shown = client.predict(*arguments, api_name=name)
        if name == "/mute":
            continue
        said, wanted = answer_of(shown[0]), next(expected)
        with lock:
            load.answers += 1
            load.seconds.append(time.monotonic() - started)
            if said != wanted:
                load.wrong.append(f"{script.picture.name}: {said!r} instead of {wanted!r}")
    client.predict(api_name="/clear")


def answer_of(messages: list[dict[str, Any]]) -> str:
    """The text of the last message."""
    parts = messages[-1]["content"] if messages else []
    return "".join(view.unescape(part["text"]) for part in parts if part["type"] == "text")


def _pss(process: psutil.Process) -> int:
    """Memory of a process and of those that it started; shared pages in parts. (Elsewhere than on Linux: RSS.)"""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            found = one.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(found, "pss", found.rss)
    return total


def start(config: Path, port: int, log: Path, temporary: Path) -> tuple[subprocess.Popen, float]:
    """The page in a process of its own, and the seconds until it was served."""
    started = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "demo.py", "--cfg-path", str(config), "--gpu-id", "-1", "--port", str(port)],
            cwd=ROOT, stdout=out, stderr=out, env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
                return process, time.monotonic() - started
        except httpx.HTTPError:
            pass
        if process.poll() is not None:
            raise RuntimeError(f"demo.py ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)


def on_screen(address: str) -> float | None:
    """Seconds until Chromium shows the text box; None where there is no Chromium."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        started = time.monotonic()
        page.goto(address)
        page.locator("#box textarea").wait_for()
        seconds = time.monotonic() - started
        browser.close()
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", type=Path, default=ROOT / "eval_configs" / "quickstart.yaml")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        temporary = folder / "tmp"
        temporary.mkdir()
        scripts = write_scripts(Engine.load(args.cfg_path, device="cpu"), folder, args.sessions)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process, served = start(args.cfg_path.absolute(), port, folder / "log.txt", temporary)
        address = f"http://127.0.0.1:{port}/"
        try:
            screen = on_screen(address)
            load = run(address, process.pid, scripts, args.seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        left = sorted(path.name for path in temporary.iterdir() if "torchinductor" not in path.name)  # torch's own
        figures = report(load, scripts, served, screen, status, left)
        log = (folder / "log.txt").read_text()
    print("\n".join(f"{name}: {value}" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if "Traceback" in log:
        print(log[-4000:], file=sys.stderr)
    return int(bool(load.errors or load.wrong or left or status or "Traceback" in log))


def report(
    load: Load, scripts: list[Script], served: float, screen: float | None, status: int, left: list[str]
) -> dict[str, Any]:
    """The figures, by name."""
    ordered = sorted(load.seconds)
    memory = [pss / MIB for _, pss in load.memory]
    return {
        "users": len(scripts),
        "different sets of answers": len({script.answers for script in scripts}),
        "answers": load.answers,
        "wrong answers": load.wrong[:5] or 0,
        "errors": load.errors[:5] or 0,
        "seconds per answer, median and 95 %": [
            round(statistics.median(ordered), 2) if ordered else None,
            round(ordered[int(0.95 * len(ordered))], 2) if ordered else None,
        ],
        "memory of the server in MiB, at the beginning, most, at the end": [
            round(memory[0]), round(max(memory)), round(memory[-1]),
        ],
        "growth in the second half in MiB": round(load.growth / MIB, 1),
        "seconds until the page was served": round(served, 1),
        "seconds until the text box was on the screen": None if screen is None else round(screen, 1),
        "status of the server at its end": status,
        "files left behind": left or 0,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
