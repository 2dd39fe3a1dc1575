"""A plan as text for people, and as JSON for programs. GB are 10**9 bytes, TFLOP 10**12 operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from chatbridge.planning.costs import CONTEXT_BYTES, MARGIN
from chatbridge.planning.result import Plan

GB, TERA = 1e9, 1e12


def to_text(plan: Plan) -> str:
    """The whole plan; its last lines are the verdict."""
    blocks = [_heading(plan), _model(plan), _trainable(plan), _memory(plan), _flops(plan), _throughput(plan)]
    blocks += [_variants(plan), _data(plan), _verdict(plan)]
    return "\n\n".join(block for block in blocks if block)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; every number in bytes, operations, samples or seconds, never rounded."""
    told = {"config": plan.source, "ok": plan.ok, "gpus_per_node": plan.gpus, "compile": plan.compiled}
    told |= {name: getattr(plan, name) for name in ("problems", "missing", "warnings", "nodes", "amp", "seconds")}
    told |= {name: _plain(getattr(plan, name)) for name in ("device", "links", "throughput", "variants")}
    told |= {"strategy": plan.sharding.strategy, "offload_frozen": plan.sharding.offload}
    told |= {"accumulate": plan.sharding.accumulate, "model": None, "memory": None}
    if plan.inventory is not None:
        found = plan.inventory
        numbers = ("parameters", "parameter_bytes", "trainable_parameters")
        told["model"] = {"language_model": found.source} | {name: getattr(found, name) for name in numbers}
        told["model"] |= {"parts": _plain(found.parts), "buffers": _plain(found.buffers)}
        told["model"]["trainable"] = [{"name": name, "shape": list(shape)} for name, shape in found.trainable]
    if plan.resident is not None:
        steps = {name: _plain(m) | {"moment": m.moment, "peak": m.peak} for name, m in plan.memory.items()}
        always = _plain(plan.resident) | {"context": CONTEXT_BYTES}
        told["memory"] = {"always": always, "steps": steps, "peak": plan.peak, "room": plan.device.memory_gb * GB}
    told["steps"] = {d.name: _plain(d) | {"flops_per_rank": _plain(plan.work[d.name])} for d in plan.datasets}
    told["data"] = {
        name: {"entries": count, "samples": plan.samples.get(name, []), "probe": _plain(plan.probes.get(name))}
        for name, count in plan.entries.items()
    }
    return told


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, in lists and dictionaries, too."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _heading(plan: Plan) -> str:
    d = plan.device
    where = f"{plan.nodes} x {plan.gpus} {d.name}" if plan.nodes > 1 else f"{plan.gpus} {d.name}"
    return (
        f"Plan of {plan.source}\n"
        f"{where}: {d.half_tflops:g} TFLOP/s in half precision, {d.single_tflops:g} in fp32, {d.memory_gb:g} GB each; "
        f"utilisation {d.utilisation:.0%}; strategy {plan.sharding.label}; amp {plan.amp or 'no'}"
    )


def _model(plan: Plan) -> str:
    found = plan.inventory
    if found is None:
        return ""
    rows = [["component", "type", "", "tensors", "parameters", "GB"]]
    for part in found.parts:
        fate = "trains" if part.trainable else "frozen"
        rows.append([part.component, part.dtype, fate, f"{part.tensors}", f"{part.numbers:,}", _gb(part.bytes, 3)])
    rows.append(["total", "", "", "", f"{found.parameters:,}", _gb(found.parameter_bytes, 3)])
    told = f" (language model: {found.source})" if found.source else ""
    return f"Parameters{told}\n" + table(rows, "lllrrr")


def _trainable(plan: Plan) -> str:
    found = plan.inventory
    if found is None:
        return ""
    rows = [["trainable tensors", "shape", "times"]]
    rows += [[name, " x ".join(map(str, shape)), f"{count}"] for name, shape, count in found.folded()]
    head = f"Trains: {found.trainable_parameters:,} parameters in {len(found.trainable)} tensors"
    return f"{head}\n" + table(rows, "lrr")


def _memory(plan: Plan) -> str:
    r = plan.resident
    if r is None:
        return ""
    rows = [["memory per GPU, GB", *plan.memory]]
    always = [("weights", r.weights + r.buffers), ("optimiser", r.optimiser), ("gradient buckets", r.buckets)]
    always.append(("context (assumed)", CONTEXT_BYTES))
    steps = list(plan.memory.values())
    rows += [[name, *([_gb(value)] * max(1, len(steps)))] for name, value in always]
    if steps:
        rows.append(["activations", *(_gb(m.activations) for m in steps)])
        if plan.sharding.sharded:
            rows.append(["layers gathered", *(_gb(m.gathered) for m in steps)])
        rows.append(["worst moment", *(m.moment for m in steps)])
        rows.append(["at that moment", *(_gb(m.peak) for m in steps)])
        rows.append(["peak", *(_gb(r.always + m.peak + CONTEXT_BYTES) for m in steps)])
    told = f"Peak {_gb(plan.peak)} GB of {plan.device.memory_gb:g} GB"
    return "\n".join(filter(None, (_columns(rows, told), _host(plan))))


def _host(plan: Plan) -> str:
    """Host memory that the strategy asks for."""
    r = plan.resident
    if not r.building:
        return ""
    told = f"Host memory of a node: {_gb(r.building)} GB for a copy of the language model, cut by each process in turn"
    return told + (f"; {_gb(r.pinned)} GB locked for the offloaded pieces throughout" if plan.sharding.offload else "")


def _columns(rows: list[list[str]], told: str, most: int = 6) -> str:
    """A table whose first column stays while the others are laid out `most` at a time."""
    width = max(len(row) for row in rows) - 1
    parts = []
    for first in range(0, max(1, width), most):
        part = [[row[0], *row[1 + first : 1 + first + most]] for row in rows]
        parts.append(table(part, "l" + "r" * (len(part[0]) - 1)))
    return f"{told}\n" + "\n\n".join(parts)


def _flops(plan: Plan) -> str:
    if not plan.datasets:
        return ""
    parts = list(dict.fromkeys(part for work in plan.work.values() for part in work))
    head, samples = [d.name for d in plan.datasets], [d.expected.samples for d in plan.datasets]
    works = [plan.work[d.name] for d in plan.datasets]
    totals = [sum(w.total for w in work.values()) for work in works]
    rows = [["TFLOP per sample", *head]]
    for part in parts:
        done = [(work.get(part), count) for work, count in zip(works, samples, strict=True)]
        rows.append([part, *("-" if w is None else f"{w.forward / n / TERA:.3f} + {w.backward / n / TERA:.3f}"
                             for w, n in done)])  # fmt: skip
    rows.append(["sum", *(f"{t / n / TERA:.3f}" for t, n in zip(totals, samples, strict=True))])
    scale = plan.world * plan.sharding.accumulate / TERA
    rows.append(["a step, all GPUs", *(f"{t * scale:,.1f}" for t in totals)])
    expected = [d.expected for d in plan.datasets]
    shapes = [["batch", *head], ["share of steps", *(f"{d.share:.2%}" for d in plan.datasets)]]
    shapes.append(["samples per GPU", *(f"{n:g}" for n in samples)])
    shapes.append(["positions", *(f"{e.length:.0f}" for e in expected)])
    shapes.append(["supervised per sample", *(f"{e.supervised / e.samples:.1f}" for e in expected)])
    shapes.append(["lengths", *("measured" if d.measured else "at limit" for d in plan.datasets)])
    return "\n\n".join((_columns(shapes, "Batches"), _columns(rows, "Operations, forward + backward")))


def _throughput(plan: Plan) -> str:
    t = plan.throughput
    if t is None:
        return ""
    lines = [
        f"Expected: {t.step_flops / TERA:,.0f} TFLOP and {t.step_seconds:.2f} s a step, "
        f"{t.samples_per_second:,.0f} samples/s, {_duration(t.days)} for {t.steps:,} steps",
        "(at the utilisation above; loading of data, checkpoints and validation not counted)",
    ]
    moved = [f"operations {t.compute_seconds:.3f} s"]
    if plan.world > 1:
        rate = f"at {plan.links.gpu:g} GB/s between GPUs"
        rate += f" and {plan.links.network:g} GB/s between nodes" if plan.nodes > 1 else ""
        gathered = f"layers gathered {t.transfers.gather:.3f} s, " if plan.sharding.sharded else ""
        moved.append(f"{gathered}gradients reduced {t.transfers.reduce:.3f} s {rate}")
    if plan.sharding.offload:
        moved.append(f"layers copied from host memory {t.transfers.copy:.3f} s at {plan.links.host:g} GB/s")
    if len(moved) > 1:
        if plan.world > 1:
            end = f"{t.bound} bounds the step: all of it taken to overlap; {t.serial_seconds:.3f} s if nothing did"
        else:
            end = "one after the other: a single process does not prefetch"
        lines.append(f"A step: {'; '.join(moved)}; {end} (rates are assumed)")
    if plan.compiled is not None:
        lines.append(
            f"run.compile ({plan.compiled}): layers are compiled when they first run, which takes time at the start; "
            "what it gains is not in the utilisation"
        )
    return "\n".join(lines)


def _variants(plan: Plan) -> str:
    if not plan.variants:
        return ""
    rows = [["", "strategy", "offload", "checkpointing", "GB", "parts", "samples", "GB", "s a step", "bound by"]]
    for v in plan.variants:
        mark = "*" if v.chosen else ""
        row = [mark, v.strategy, "yes" if v.offload else "no", "yes" if v.checkpointing else "no", _gb(v.uncut)]
        if v.parts is None:
            row += ["-", "-", f"({_gb(v.peak)})", "-", "does not fit"]
        else:
            row += [f"{v.parts}", f"{v.samples:g}", _gb(v.peak), f"{v.throughput.step_seconds:.2f}", v.throughput.bound]
        rows.append(row)
    told = (
        "Ways to run it (* this plan): GB of a GPU as configured; parts to cut every batch into, and to accumulate,\n"
        f"so that {MARGIN:.0%} of {plan.device.memory_gb:g} GB stays free; samples on a GPU at once, GB and time then"
    )
    return f"{told}\n" + table(rows, "llllrrrrrl")


def _data(plan: Plan) -> str:
    lines = []
    for name, count in plan.entries.items():
        lines.append(f"{name}: {'an unknown number of' if count is None else f'{count:,}'} entries")
        for sample in plan.samples.get(name, []):
            size = ""
            if "positions" in sample:  # without a tokenizer nothing is counted
                size = f"  ({sample['positions']} positions, {sample['supervised']} supervised, {sample['cut']} cut)"
            lines.append(f"  {sample['id']}: {sample['text']}{size}")
        seen = plan.probes.get(name)
        if seen is not None:
            readable = seen.read - len(seen.unreadable)
            told = f"  probe of {seen.items}: media of {readable} of {seen.read} tried are readable"
            if seen.lengths:
                told += (
                    f"; {seen.labels_after:,} of {seen.labels_before:,} labels survive truncation, "
                    f"{seen.cut_tokens:,} text tokens cut from {seen.cut_items} items"
                )
            lines.append(told)
            lines += [f"    {line}" for line in (seen.refused + seen.unreadable)[:3]]
    return "\n".join(["Data: first samples, supervised tokens between ⟦ ⟧", *lines]) if lines else ""


def _verdict(plan: Plan) -> str:
    lines = [f"warning: {line}" for line in plan.warnings]
    lines += [f"missing: {line}" for line in plan.missing]
    lines += [f"error: {line}" for line in plan.problems]
    if plan.ok:
        lines.append(f"{plan.source}: can start")
    else:
        lines.append(f"{plan.source}: would fail ({len(plan.problems)} errors, {len(plan.missing)} missing paths)")
    return "\n".join(lines)


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"


def _gb(value: float, digits: int = 2) -> str:
    return f"{value / GB:,.{digits}f}"


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows of cells as aligned text, the first one underlined; `align` has "l" or "r" for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if a == "l" else c.rjust(w) for c, w, a in zip(row, widths, align, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "  ".join("-" * w for w in widths))
    return "\n".join(lines)
