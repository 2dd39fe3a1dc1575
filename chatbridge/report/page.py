"""The report of one run as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from chatbridge.report.chart import COLOURS, AxisScale, Chart, Line, Mark, draw, grid
from chatbridge.report.events import events_section, marks
from chatbridge.report.figures import Figures
from chatbridge.report.formatting import clock, count, duration, percent, rounded, steps
from chatbridge.report.markup import Html, data, join, table, tag
from chatbridge.report.run import RUNNING, Run, Share
from chatbridge.report.run_info import run_info_section
from chatbridge.report.series import RECENT
from chatbridge.report.style import page

REFRESH = 60
"""Seconds after which a browser reads the page of a running run again."""
MAX_REASONS = 50
WAITING = 0.25
"""Part of the time spent waiting for data from which on the page speaks of it."""


@dataclass(frozen=True)
class View:
    """What all parts of a page look at."""

    run: Run
    figures: Figures
    now: datetime
    marks: Sequence[Mark]

    @property
    def last(self) -> int:
        return max(1, self.figures.step)

    def chart(self, chart: Chart) -> Html | None:
        return draw(chart, 0, self.last, self.marks)

    def colour(self, dataset: str) -> int:
        return self.run.datasets.index(dataset)


def render(run: Run, now: datetime) -> str:
    """The page of a run that was refreshed."""
    view = View(run, Figures.of(run, now), now, marks(run))
    figures = view.figures
    sections = [
        ("Loss", "loss", _loss(view)),
        ("Optimisation", "optimisation", _optimisation(view)),
        ("Speed and memory", "speed", _speed(view)),
        ("Data", "data", _data(view)),
        ("Events", "events", events_section(run, view.last)),
        ("What was run", "run", run_info_section(run.info)),
    ]
    of = f" of {figures.total_steps:,}" if figures.total_steps else ""
    title = f"{run.name} · step {figures.step:,}{of} · {figures.state}"
    refresh = REFRESH if figures.state == RUNNING else None
    return page(title, _header(view), sections, _footer(view), refresh)


def _header(view: View) -> Html:
    f = view.figures
    share = min(1.0, f.step / f.total_steps) if f.total_steps else None
    bar = share is not None and tag(
        "div", tag("i", style=f"width:{share:.2%}"), class_=f"progress {f.state}", role="progressbar",
        aria_label="steps done", aria_valuemin=0, aria_valuemax=f.total_steps, aria_valuenow=f.step,
    )  # fmt: skip
    return tag(
        "header",
        tag("p", "ChatBridge training run", class_="kind"),
        tag("div", tag("h1", view.run.name), tag("span", f.state, class_=f"pill {f.state}"), class_="title"),
        tag("p", f.why, class_="why") if f.why else None,
        bar or None,
        tag("dl", *_tiles(view), class_="tiles"),
        _alerts(view),
    )


def _tile(name: str, value: str, more: str | Html = "") -> Html:
    return tag("div", tag("dt", name), tag("dd", value, class_="big"), tag("dd", more, class_="more") if more else None)


def _tiles(view: View) -> list[Html]:
    f, run = view.figures, view.run
    tiles = []
    step = data(f.step, f"{f.step:,}")
    if f.total_steps:
        of = join(["of ", data(f.total_steps, f"{f.total_steps:,}"), f" · {min(1, f.step / f.total_steps):.1%}"])
        tiles.append(_tile("Step", step, of))
    else:
        tiles.append(_tile("Step", step, "of an unknown number"))
    if f.state == RUNNING and f.seconds_left is not None:
        end = view.now + timedelta(seconds=min(f.seconds_left, 1e9))
        tiles.append(_tile("Time left", data(f.seconds_left, duration(f.seconds_left)), f"until {_minute(end)}"))
    if f.loss is not None:
        more = join([f"mean of last {RECENT}: ", data(f.recent_loss, rounded(f.recent_loss))])
        tiles.append(_tile("Last loss", data(f.loss, rounded(f.loss)), more))
    tiles += [_validation_tile(f)] if f.validation else []
    if f.checkpoint is not None:
        event = run.checkpoint()
        when = f"written {_minute(event.time)}" if event and event.time else ""
        tiles.append(_tile("Last checkpoint at step", data(f.checkpoint, f"{f.checkpoint:,}"), when))
    elif f.state == RUNNING:
        tiles.append(_tile("Last checkpoint", "none yet"))
    if f.samples_per_second is not None:
        more = f"{rounded(f.tokens_per_second)} supervised tokens/s" if f.tokens_per_second is not None else ""
        tiles.append(_tile("Samples per second", data(f.samples_per_second, rounded(f.samples_per_second)), more))
    elif f.tokens_per_second is not None:
        value = data(f.tokens_per_second, rounded(f.tokens_per_second))
        tiles.append(_tile("Supervised tokens per second", value, "mean"))
    if f.peak_share is not None:
        more = f"{rounded(f.tflops)} TFLOP/s per device" if f.tflops is not None else ""
        tiles.append(_tile("Share of the peak", data(f.peak_share, percent(f.peak_share)), more))
    seconds = f"{rounded(f.step_seconds)} s a step" if f.step_seconds is not None else ""
    if f.data_share is not None:
        tiles.append(_tile("Waiting for data", data(f.data_share, percent(f.data_share)), seconds))
    return tiles


def _validation_tile(f: Figures) -> Html:
    name, one = next(iter(f.validation.items()))
    lowest = f"lowest {rounded(one.lowest)} at step {one.at:,}" if one.at is not None else ""
    others = f"{name}; {len(f.validation) - 1} more below" if len(f.validation) > 1 else name
    return _tile("Validation loss", data(one.last, rounded(one.last)), " · ".join(filter(None, [others, lowest])))


def _alerts(view: View) -> Html | None:
    f, run = view.figures, view.run
    alerts = []
    broken = run.metrics.not_finite()
    if broken:
        alerts.append(f"Loss or gradient was not finite at {count(len(broken), 'logged step')}: {steps(broken)}")
    if f.skipped:
        alerts.append(f"{count(f.skipped, 'step')} skipped: no update was made there")
    failed = [e for e in run.events.all if e.kind == "checkpoint_failed"]
    if failed:
        why = failed[-1].text or "no reason given"
        alerts.append(f"{count(len(failed), 'checkpoint')} could not be written; the last at step "
                    f"{rounded(failed[-1].step)}: {why}")  # fmt: skip
    hung = run.events.last("hang")
    if hung is not None:
        alerts.append(f"A process stood still at step {rounded(hung.step)}: {hung.text}")
    if f.data_share is not None and f.data_share > WAITING:
        alerts.append(f"{percent(f.data_share)} of the time is spent waiting for data: raise run.num_workers")
    if run.metrics.went_back:
        alerts.append(f"Steps were logged again from step {steps(run.metrics.went_back)} on: the later lines are shown")
    if run.metrics.unreadable:
        lines = count(run.metrics.unreadable, "line")
        alerts.append(f"{lines} of metrics.jsonl could not be read and left out")
    if run.info.problem:
        alerts.append(run.info.problem)
    return tag("ul", *(tag("li", line) for line in alerts), class_="alerts", aria_label="Attention") if alerts else None


def _loss(view: View) -> Html:
    metrics = view.run.metrics
    lines = [Line(n, metrics.losses[n], view.colour(n)) for n in view.run.datasets if n in metrics.losses]
    if not lines and len(metrics.train.loss):
        lines = [Line("loss", metrics.train.loss)]
    held = [Line(n, metrics.validation[n], view.colour(n), smooth=False) for n in view.run.datasets
            if n in metrics.validation]  # fmt: skip
    dotted = " Dotted: resumed, or a signal came; red: something failed (see Events)." if view.marks else ""
    charts = [
        Chart("train-loss", "Training loss", lines, "Mean per supervised token, by dataset." + dotted, AxisScale.CHOICE,
              tall=True),
        Chart("validation-loss", "Validation loss", held, "Mean per supervised token, by validation set.",
              AxisScale.CHOICE, tall=True),
    ]  # fmt: skip
    drawn = [d for d in map(view.chart, charts) if d]
    return join(drawn) if drawn else tag("p", "Nothing logged yet.", class_="none")


def _optimisation(view: View) -> Html | None:
    train, norms = view.run.metrics.train, view.run.metrics.norms
    parts = [Line(name, series.nonzero(), i) for i, (name, series) in enumerate(norms.items())]
    return grid(map(view.chart, [
        Chart("lr", "Learning rate", [Line("learning rate", train.lr, smooth=False)], "Of the optimizer's steps.",
              AxisScale.LINEAR, zero=True),
        Chart("grad-norm", "Gradient norm", [Line("all parameters", train.grad_norm)], "Before clipping."),
        Chart("grad-norms", "Gradient norm by component", parts, "Before clipping, at steps that pass through it."),
        Chart("loss-scale", "Loss scale", [Line("scale", train.loss_scale, smooth=False)], "Of fp16's scaler."),
    ]))  # fmt: skip


def _speed(view: View) -> Html | None:
    t = view.run.metrics.train
    return grid(map(view.chart, [
        Chart("samples", "Samples per second", [Line("samples/s", t.samples_per_second)], "All devices.", zero=True),
        Chart("tokens", "Tokens per second", [Line("tokens/s", t.tokens_per_second)],
              "Supervised tokens, all devices.", zero=True),
        Chart("tflops", "Operations per second", [Line("TFLOP/s", t.tflops)], "Per device.", zero=True),
        Chart("peak", "Share of the device's peak", [Line("share", t.peak_share)], "Of what its data sheet promises.",
              AxisScale.LINEAR, True, True),
        Chart("step-time", "Time of a step", [Line("seconds", t.step_seconds)], "Seconds.", zero=True),
        Chart("data-wait", "Waiting for data", [Line("share", t.data_share)], "Part of a step's time.",
              AxisScale.LINEAR, True, True),
        Chart("memory", "Memory", [Line("GB", t.memory_gb, smooth=False)],
              "The most held so far, 10⁹ bytes: of the GPU, or of the process without one.", AxisScale.LINEAR, True),
    ]))  # fmt: skip


def _data(view: View) -> Html:
    train = view.run.metrics.train
    bad = [Line("replaced", train.replaced, 1, smooth=False), Line("skipped steps", train.skipped, 4, smooth=False)]
    bad = [line for line in bad if line.series.last]
    counts = Chart(
        "bad", "Replaced samples and skipped steps", bad, "Counted from the beginning.", AxisScale.LINEAR, True
    )
    return join([_mixture(view), view.chart(counts), _ledger(view)])


def _mixture(view: View) -> Html | None:
    shares = view.run.shares()
    if not shares:
        return None
    if view.run.metrics.drawn is not None:
        note = "Samples drawn so far."
    else:
        note = "Counted in logged steps: this run does not log how many samples it drew."
    if any(s.expected is not None for s in shares):
        note += " The upright mark is the share that the configuration asks for."
    items = [_share(view, share) for share in shares]
    return tag(
        "div", tag("h3", "Mixture as drawn"), tag("p", note, class_="note"), tag("ul", *items, class_="mix"),
        class_="card", id="mixture",
    )  # fmt: skip


def _share(view: View, share: Share) -> Html:
    known = share.dataset in view.run.datasets
    colour = f"c{view.colour(share.dataset) % COLOURS}" if known else None
    asked = share.expected
    words = [data(share.share, percent(share.share)), " drawn"]
    if asked is not None:
        words += [", ", data(asked, percent(asked)), " asked for"]
    return tag(
        "li",
        tag(
            "div",
            tag("span", share.dataset, class_="name"), tag("span", data(share.drawn, f"{share.drawn:,.0f}")),
            tag("span", *words), class_="words",
        ),
        tag(
            "div", tag("i", class_=colour, style=f"width:{share.share:.2%}"),
            tag("b", style=f"left:calc({asked:.2%} - 1px)") if asked is not None else None,
            class_="bar", aria_hidden="true",
        ),
    )  # fmt: skip


def _ledger(view: View) -> Html:
    groups = view.run.ledger.table()
    head = tag("h3", "What could not be read")
    if not groups:
        return tag("div", head, tag("p", "The ledger is empty: every sample was read.", class_="none"), class_="card",
                   id="ledger")  # fmt: skip
    rows = [
        [g.dataset, g.reason, data(g.count, f"{g.count:,}"), data(g.entries, f"{g.entries:,}"),
         tag("code", _cut(g.example))]
        for g in groups[:MAX_REASONS]
    ]  # fmt: skip
    total = sum(g.count for g in groups)
    note = f"{total:,} samples over all ranks, by dataset and reason; 0 samples: worked when it was tried again."
    if len(groups) > MAX_REASONS:
        note += f" {len(groups) - MAX_REASONS:,} rarer reasons are left out."
    names = ["dataset", "reason", "samples", "entries", "for example"]
    listed = table(names, rows, "What could not be read, by dataset and reason", numeric=(2, 3))
    return tag("div", head, tag("p", note, class_="note"), listed, class_="card", id="ledger")


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _footer(view: View) -> Html:
    again = f" It is written anew as the run goes on; this page reads it every {REFRESH} s."
    return tag(
        "footer", f"Written {clock(view.now)}.", again if view.figures.state == RUNNING else None,
        tag("br"), "Compare runs: ", tag("code", "python -m chatbridge.report RUN RUN"),
    )  # fmt: skip


def _minute(time: datetime | None) -> str:
    return clock(time).removesuffix(" UTC")[:-3] + " UTC" if time else "–"
