"""Many clients at the HTTP endpoint, each with questions whose answers are known: ``python benchmarks/serving.py``.

Wants quickstart's model (`make quickstart`). Every client shows a picture and a sound of its own, asks whether they fit
(streamed), and then something about the picture alone. Told are: answers and errors; whether one medium ever got two
answers (which would be cross-talk); the share of right answers; memory of the server; times. Exit status 1 for errors,
two answers, or a share under 0.9.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI, OpenAIError

WORLD = Path("output/quickstart/world/media")
SECOND = "which shape do you see?"


@dataclass
class Tally:
    """What all clients found."""

    answers: dict[str, str] = field(default_factory=dict)
    right: int = 0
    asked: int = 0
    problems: list[str] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", default="eval_configs/quickstart.yaml")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    command = [sys.executable, "-m", "chatbridge.serve", "--cfg-path", args.cfg_path, "--port", "0"]
    started = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        return measure(server, args, started)
    finally:
        server.terminate()
        print("exit status of the server:", server.wait(30))


def measure(server: subprocess.Popen[str], args: argparse.Namespace, started: float) -> int:
    url = None
    for line in server.stderr:
        if found := re.search(r"serving '(.*)' at (\S+)", line):
            name, url = found.groups()
            break
    if url is None:
        return 1
    print(f"listens after {time.perf_counter() - started:.1f} s")
    threading.Thread(target=server.stderr.read, daemon=True).start()
    records = json.loads((WORLD / "annotations" / "joint_image_match.json").read_text())
    tally, end = Tally(), time.monotonic() + args.seconds
    threads = [
        threading.Thread(target=talk, args=(OpenAI(base_url=url, api_key="none", max_retries=0), name, own, tally, end))
        for own in (records[number :: args.clients] for number in range(args.clients))
    ]
    memory, process = [], psutil.Process(server.pid)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(1.0, args.seconds / 20))
        memory.append(process.memory_info().rss / 2**20)
    share = tally.right / max(1, tally.asked)
    print(f"{args.clients} clients, {args.seconds:g} s: {2 * tally.asked} answers, {len(tally.problems)} problems")
    print(f"right: {share:.3f} of {tally.asked}")
    print(f"positions of second questions that were not read again: {statistics.mean(tally.cached):.3f}")
    print(f"first token of the first question, median: {1000 * statistics.median(tally.first_seconds):.0f} ms")
    tenth = max(1, len(memory) // 10)
    print(f"server's memory, MiB: {statistics.mean(memory[tenth : 2 * tenth]):.0f} early, ", end="")
    print(f"{statistics.mean(memory[-tenth:]):.0f} at the end")
    for problem in tally.problems[:5]:
        print("problem:", problem)
    return int(bool(tally.problems) or share < 0.9)


def talk(client: OpenAI, model: str, records: list[dict[str, str]], tally: Tally, end: float) -> None:
    """One client: its records over and over."""
    number = 0
    while time.monotonic() < end:
        record = records[number % len(records)]
        number += 1
        messages: list[Any] = [{"role": "user", "content": shown(record)}]
        try:
            text = streamed(client, model, messages, tally)
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": SECOND}]
            reply = client.chat.completions.create(model=model, messages=messages, max_tokens=40)
        except OpenAIError as error:
            tally.problems.append(repr(error))
            return
        answers = {"first": text, "second": reply.choices[0].message.content}
        with tally.lock:
            tally.asked += 1
            tally.right += text == record["answer"]
            tally.cached.append(reply.usage.prompt_tokens_details.cached_tokens / reply.usage.prompt_tokens)
            for question, answer in answers.items():
                before = tally.answers.setdefault(f"{record['image_id']} {question}", answer)
                if before != answer:
                    tally.problems.append(f"{record['image_id']}: {before!r}, and then {answer!r}")


def shown(record: dict[str, str]) -> list[dict[str, Any]]:
    picture, sound = (base64.b64encode((WORLD / record[key]).read_bytes()).decode() for key in ("image_id", "audio_id"))
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "text", "text": record["question"]},
    ]


def streamed(client: OpenAI, model: str, messages: list[Any], tally: Tally) -> str:
    text, started, first = "", time.perf_counter(), None
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=40, stream=True):
        text += chunk.choices[0].delta.content or ""
        if text and first is None:
            first = time.perf_counter() - started
            tally.first_seconds.append(first)
    return text


if __name__ == "__main__":
    sys.exit(main())
