"""A plan as text for people, and as JSON for programs. GB are 10**9 bytes, TFLOP 10**12 operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chatbridge.planning.memory import CONTEXT_BYTES, MARGIN

if TYPE_CHECKING:
    from chatbridge.planning.run_plan import RunPlan

GB, TERA = 1e9, 1e12

COLUMNS = 6
"""Datasets that stand beside each other."""


def to_text(plan: RunPlan) -> str:
    """The whole plan; its last lines are the verdict."""
    blocks = [_heading(plan), _parameters(plan), _memory(plan), _operations(plan), _throughput(plan), _variants(plan)]
    return "\n\n".join(block for block in [*blocks, _data(plan), _verdict(plan)] if block)


def to_json(plan: RunPlan) -> dict[str, Any]:
    """The plan as plain values; every number in bytes, operations, samples or seconds, never rounded."""
    where, count, costs = plan.placement, plan.parameters, plan.costs
    values = {name: getattr(plan, name) for name in ("problems", "missing", "warnings", "amp", "seconds", "ok")}
    values |= {"config": plan.source, "compile": plan.compiled, "nodes": where.nodes, "gpus_per_node": where.gpus}
    values |= {"strategy": where.strategy, "offload_frozen": where.offload, "accumulate": where.accumulate}
    values |= {"device": where.device, "throughput": costs and costs.throughput, "variants": plan.variants}
    values["links"] = {"gpu": where.link_gbs, "host": where.host_gbs, "network": where.network_gbs}
    values["model"] = count and {
        "language_model": count.source,
        "parameters": count.parameters,
        "parameter_bytes": count.parameter_bytes,
        "trainable_parameters": count.trainable_parameters,
        "parts": count.parts,
        "buffers": count.buffers,
        "trainable": [{"name": name, "shape": list(shape)} for name, shape in count.trainable],
    }
    values["memory"] = costs and {
        "always": dataclasses.asdict(costs.resident) | {"context": CONTEXT_BYTES},
        "steps": {n: dataclasses.asdict(m) | {"moment": m.moment, "peak": m.peak} for n, m in costs.memory.items()},
        "peak": costs.peak,
        "room": plan.room,
    }
    values["steps"] = {d.name: dataclasses.asdict(d) | {"flops_per_rank": costs.work[d.name]} for d in plan.datasets}
    values["data"] = {}
    for name, seen in plan.probes.items():
        found = dataclasses.asdict(seen)
        values["data"][name] = {"entries": found.pop("entries"), "samples": found.pop("samples"), "probe": found}
    return _plain(values)


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, in lists and dictionaries, too."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _heading(plan: RunPlan) -> str:
    where, d = plan.placement, plan.placement.device
    gpus = f"{where.nodes} x {where.gpus}" if where.nodes > 1 else f"{where.gpus}"
    strategy = where.strategy + (", offload_frozen" if where.offload else "")
    return (
        f"Plan of {plan.source}\n"
        f"{gpus} {d.name}: {d.half_tflops:g} TFLOP/s in half precision, {d.single_tflops:g} in fp32, "
        f"{d.memory_gb:g} GB each; utilisation {d.utilisation:.0%}; strategy {strategy}; amp {plan.amp or 'no'}"
    )


def _parameters(plan: RunPlan) -> str:
    count = plan.parameters
    if count is None:
        return ""
    rows = [["component", "type", "", "tensors", "parameters", "GB"]]
    for part in count.parts:
        fate = "trains" if part.trainable else "frozen"
        rows.append([part.component, part.dtype, fate, f"{part.tensors}", f"{part.numbers:,}", _gb(part.bytes, 3)])
    rows.append(["total", "", "", "", f"{count.parameters:,}", _gb(count.parameter_bytes, 3)])
    trainable = [["trainable tensors", "shape", "times"]]
    trainable += [[n, " x ".join(map(str, s)), f"{times}"] for (n, s), times in count.trainable_by_layer().items()]
    source = f" (language model: {count.source})" if count.source else ""
    head = f"Trains: {count.trainable_parameters:,} parameters in {len(count.trainable)} tensors"
    return f"Parameters{source}\n{table(rows, 'lllrrr')}\n\n{head}\n{table(trainable, 'lrr')}"


def _memory(plan: RunPlan) -> str:
    if plan.costs is None:
        return ""
    r, steps = plan.costs.resident, list(plan.costs.memory.values())
    always = {"weights": r.weights + r.buffers, "optimizer": r.optimizer, "gradient buckets": r.buckets}
    rows = [["memory per GPU, GB", *plan.costs.memory]]
    for name, value in (always | {"context (assumed)": CONTEXT_BYTES}).items():
        rows.append([name, *([_gb(value)] * max(1, len(steps)))])
    if steps:
        rows.append(["activations", *(_gb(m.activations) for m in steps)])
        if plan.placement.sharded:
            rows.append(["layers gathered", *(_gb(m.gathered) for m in steps)])
        rows.append(["worst moment", *(m.moment for m in steps)])
        rows.append(["at that moment", *(_gb(m.peak) for m in steps)])
        rows.append(["peak", *(_gb(r.always + m.peak) for m in steps)])
    else:
        rows[0].append("")
    text = f"Peak {_gb(plan.costs.peak)} GB of {plan.placement.device.memory_gb:g} GB\n{_columns(rows)}"
    if r.building:
        text += f"\nHost memory of a node: {_gb(r.building)} GB for a copy of the language model that each process cuts"
    return text + (f"; {_gb(r.pinned)} GB locked for the offloaded pieces throughout" if r.pinned else "")


def _operations(plan: RunPlan) -> str:
    if not plan.datasets:
        return ""
    expected, works = [d.expected for d in plan.datasets], [plan.costs.work[d.name] for d in plan.datasets]
    names, samples = [d.name for d in plan.datasets], [shape.samples for shape in expected]
    shapes = [
        ["batch", *names],
        ["share of steps", *(f"{d.share:.2%}" for d in plan.datasets)],
        ["samples per GPU", *(f"{n:g}" for n in samples)],
        ["positions", *(f"{e.length:.0f}" for e in expected)],
        ["supervised per sample", *(f"{e.supervised / e.samples:.1f}" for e in expected)],
        ["lengths", *("measured" if d.measured else "at limit" for d in plan.datasets)],
    ]
    totals = [sum(w.total for w in work.values()) for work in works]
    rows = [["TFLOP per sample", *names]]
    for part in dict.fromkeys(part for work in works for part in work):
        done = [(work.get(part), count * TERA) for work, count in zip(works, samples, strict=True)]
        rows.append([part, *("-" if w is None else f"{w.forward / n:.3f} + {w.backward / n:.3f}" for w, n in done)])
    rows.append(["sum", *(f"{t / n / TERA:.3f}" for t, n in zip(totals, samples, strict=True))])
    scale = plan.placement.world * plan.placement.accumulate / TERA
    rows.append(["a step, all GPUs", *(f"{t * scale:,.1f}" for t in totals)])
    return f"Batches\n{_columns(shapes)}\n\nOperations, forward + backward\n{_columns(rows)}"


def _throughput(plan: RunPlan) -> str:
    t, where = plan.costs and plan.costs.throughput, plan.placement
    if t is None:
        return ""
    text = (
        f"Expected: {t.step_flops / TERA:,.0f} TFLOP and {t.step_seconds:.2f} s a step, "
        f"{t.samples_per_second:,.0f} samples/s, {_duration(t.days)} for {t.steps:,} steps\n"
        "(at the utilisation above; loading of data, checkpoints and validation not counted)"
    )
    moved = [f"operations {t.compute_seconds:.3f} s"]
    if where.world > 1:
        rate = f"at {where.link_gbs:g} GB/s between GPUs"
        rate += f" and {where.network_gbs:g} GB/s between nodes" if where.nodes > 1 else ""
        gathered = f"layers gathered {t.transfers['gather']:.3f} s, " if where.sharded else ""
        moved.append(f"{gathered}gradients reduced {t.transfers['reduce']:.3f} s {rate}")
    if where.offload:
        moved.append(f"layers copied from host memory {t.transfers['copy']:.3f} s at {where.host_gbs:g} GB/s")
    if len(moved) > 1:
        end = "one after the other: a single process does not prefetch"
        if where.world > 1:
            end = f"{t.bound} bounds the step: all of it taken to overlap; {t.serial_seconds:.3f} s if nothing did"
        text += f"\nA step: {'; '.join(moved)}; {end} (rates are assumed)"
    if plan.compiled is not None:
        text += (
            f"\nrun.compile ({plan.compiled}): layers are compiled when they first run, which takes time at the start; "
            "what it gains is not in the utilisation"
        )
    return text


def _variants(plan: RunPlan) -> str:
    if not plan.variants:
        return ""
    rows = [["", "strategy", "offload", "checkpointing", "GB", "parts", "samples", "GB", "s a step", "bound by"]]
    for v in plan.variants:
        keys = ["*" if v.chosen else "", v.strategy, *("yes" if on else "no" for on in (v.offload, v.checkpointing))]
        fit = [f"{v.parts}", f"{v.samples:g}", _gb(v.peak), f"{v.throughput.step_seconds:.2f}", v.throughput.bound]
        rows.append([*keys, _gb(v.uncut), *(fit if v.parts else ["-", "-", f"({_gb(v.peak)})", "-", "does not fit"])])
    return (
        "Variants (* this plan): GB of a GPU as configured; parts to cut every batch into, and to accumulate,\n"
        f"so that {MARGIN:.0%} of {plan.placement.device.memory_gb:g} GB stays free; samples on a GPU at once, GB and "
        f"time then\n{table(rows, 'llllrrrrrl')}"
    )


def _data(plan: RunPlan) -> str:
    lines = []
    for name, seen in plan.probes.items():
        count = "an unknown number of" if seen.entries is None else f"{seen.entries:,}"
        lines.append(f"{name}: {count} entries")
        for sample in seen.samples:
            size = ""
            if "positions" in sample:  # without a tokenizer nothing is counted
                size = f"  ({sample['positions']} positions, {sample['supervised']} supervised, {sample['cut']} cut)"
            lines.append(f"  {sample['id']}: {sample['text']}{size}")
        line = f"  probe of {seen.items}: media of {seen.read - len(seen.unreadable)} of {seen.read} are readable"
        if seen.lengths:
            line += (
                f"; {seen.labels_after:,} of {seen.labels_before:,} labels survive truncation, "
                f"{seen.cut_tokens:,} text tokens cut from {seen.cut_items} items"
            )
        lines += [line, *(f"    {bad}" for bad in (seen.refused + seen.unreadable)[:3])]
    return "\n".join(["Data: samples, supervised tokens between ⟦ ⟧", *lines]) if lines else ""


def _verdict(plan: RunPlan) -> str:
    kinds = {"warning": plan.warnings, "missing": plan.missing, "error": plan.problems}
    lines = [f"{kind}: {line}" for kind, given in kinds.items() for line in given]
    failing = f"would fail ({len(plan.problems)} errors, {len(plan.missing)} missing paths)"
    return "\n".join([*lines, f"{plan.source}: {'can start' if plan.ok else failing}"])


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"


def _gb(value: float, digits: int = 2) -> str:
    return f"{value / GB:,.{digits}f}"


def _columns(rows: list[list[str]]) -> str:
    """A table whose first column stays while the others are laid out a few at a time."""
    parts = [[[row[0], *row[i : i + COLUMNS]] for row in rows] for i in range(1, len(rows[0]), COLUMNS)]
    return "\n\n".join(table(part, "l" + "r" * (len(part[0]) - 1)) for part in parts)


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows of cells as aligned text, the first one underlined; `align` has "l" or "r" for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if a == "l" else c.rjust(w) for c, w, a in zip(row, widths, align, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "  ".join("-" * w for w in widths))
    return "\n".join(lines)
