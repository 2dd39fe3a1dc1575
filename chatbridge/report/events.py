"""What happened in a run: marks on the curves, a strip of events by step, and the list."""

from __future__ import annotations

from datetime import datetime

from chatbridge.report.axis import step_axis
from chatbridge.report.chart import HEIGHT, WIDTH, Mark, frame
from chatbridge.report.formatting import clock
from chatbridge.report.markup import Html, data, details, join, table, tag
from chatbridge.report.run import Run
from chatbridge.report.run_files import Event

BAD = ("hang", "failed", "error", "checkpoint_failed")
"""Kinds of events that are drawn in red."""
MARKED = ("resumed", "signal", *BAD)
COLOURS = {"checkpoint": 2, "start": 0, "resumed": 0, "end": 0, "skipped": 1, "overflow": 1, "signal": 5}
MAX_MARKS, MAX_EVENTS, SHOWN_AT_ONCE = 40, 300, 12


def marks(run: Run) -> list[Mark]:
    """Vertical lines for the curves: where the run was taken up again, and what went wrong."""
    found = [e for e in run.events.all if e.kind in MARKED and e.step is not None]
    return [
        Mark(e.step, "bad" if e.kind in BAD else "", f"step {e.step:,}: {e.kind} {e.text}") for e in found[-MAX_MARKS:]
    ]


def events_section(run: Run, last: int) -> Html | None:
    """Strip and list of a run's events; None where there are none."""
    events = run.events.all
    if not events:
        return None
    kept = events[-MAX_EVENTS:]
    rows = [_row(event) for event in reversed(kept)]
    head, numeric = ["event", "step", "time", "what"], (1,)
    listed = [table(head, rows[:SHOWN_AT_ONCE], "Latest events, newest first", numeric)]
    if len(rows) > SHOWN_AT_ONCE:
        older = table(head, rows[SHOWN_AT_ONCE:], "Earlier events, newest first", numeric)
        listed.append(details(f"{len(rows) - SHOWN_AT_ONCE} earlier", older))
    if len(events) > len(kept):
        listed.append(tag("p", f"{len(events) - len(kept):,} still older ones are in events.jsonl.", class_="note"))
    return join([_strip(events, last), tag("div", *listed, class_="card", id="event-list")])


def _row(event: Event) -> list[str]:
    step = data(event.step, f"{event.step:,}") if event.step is not None else "–"
    return [event.kind.replace("_", " "), step, _time(event.time), event.text]


def _time(time: datetime | None) -> Html | str:
    return "–" if time is None else tag("time", clock(time), datetime=time.isoformat())


def _strip(events: list[Event], last: int) -> Html:
    """A row of dots for every kind of event."""
    by_kind: dict[str, list[int]] = {}
    for event in events:
        if event.step is not None:
            by_kind.setdefault(event.kind, []).append(event.step)
    if not by_kind:
        return Html()
    across = step_axis(0, max([last, *map(max, by_kind.values())]))
    parts, labels = [], []
    for i, (kind, found) in enumerate(by_kind.items()):
        place = (i + 0.5) / len(by_kind)
        y = round(place * HEIGHT)
        spots = sorted({round(step / across.high * WIDTH) for step in found})
        dots = Html("".join(f"M{x} {y}l0 0" for x in spots))
        parts += [tag("path", class_="grid", d=f"M0 {y}h{WIDTH}"), tag("path", class_=f"dot {_colour(kind)}", d=dots)]
        labels.append((place, f"{kind.replace('_', ' ')} ({len(found):,})"))
    words = "Events by step: " + ", ".join(f"{kind} {len(found)} times" for kind, found in by_kind.items())
    plot = frame(join(parts), words, labels, across, "events")
    return tag("figure", plot, class_="chart", id="events", style=f"--rows:{len(by_kind)}")


def _colour(kind: str) -> str:
    return "bad" if kind in BAD else f"c{COLOURS.get(kind, 7)}"
