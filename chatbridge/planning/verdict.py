"""What in a plan would make the run fail, and what is worth a warning."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

from chatbridge.common.config import Config
from chatbridge.models.llm import CausalLMConfig
from chatbridge.planning.memory import MARGIN
from chatbridge.planning.simulator import AMP_DTYPES
from chatbridge.runners.check import Findings
from chatbridge.runners.config import TrainingConfig
from chatbridge.weights import DTYPES
from chatbridge.weights.inspection import inspect

if TYPE_CHECKING:
    from chatbridge.planning.run_plan import RunPlan

DOUBT = 0.01
"""A run is said to fail on unreadable media when an acceptable share would show so many with less than this chance."""

SLACK = 0.05
"""Variants whose times differ by less are taken to be equally fast."""


def judge_data(result: RunPlan, config: Config) -> None:
    """Items that cannot be used, and labels that truncation removes."""
    allowed = getattr(config.run, "max_bad_share", 0.0)
    for name, seen in result.probes.items():
        bad = seen.refused + seen.unreadable
        tried = len(seen.refused) + seen.read
        if bad:
            line = f"{name}: {len(bad)} of {tried} items tried cannot be used; the first: {bad[0]}"
            certain = len(bad) == tried or _chance(len(bad), tried, allowed) < DOUBT
            (result.problems if certain else result.warnings).append(line)
        if seen.without_label:
            line = f"{name}: truncation leaves {seen.without_label} of {seen.items} items without a label"
            result.warnings.append(f"{line}; raise task.max_txt_len")
        if tried < seen.items:
            result.warnings.append(f"{name}: time was up after {tried} of {seen.items} items; --probe takes fewer")


def judge_model(result: RunPlan, config: Config, found: Findings) -> None:
    """Weight files and a tokenizer of another model, needless conversions. `found.model` is on the meta device."""
    llm, model = getattr(config.model, "llm", None), found.model
    if type(llm) is CausalLMConfig and Path(llm.path).exists() and not llm.random_weights:
        coverage = inspect(llm.path, model, model.llm.model, whole=False)
        if not coverage.ok:
            result.problems.append(f"model.llm.path: '{llm.path}' {coverage.verdict}: {coverage.complaint}")
    ids, rows = getattr(found.tokenizer, "vocab_size", 0), getattr(getattr(model, "llm", None), "vocab_size", 0)
    if ids > rows > 0:
        result.problems.append(
            f"the tokenizer has {ids} ids and the language model {rows} embeddings: they belong to different models; "
            "correct tokenizer or model.llm.path"
        )
    dtype = getattr(llm, "dtype", None)
    if result.amp and dtype and isinstance(config.run, TrainingConfig) and DTYPES[dtype] != AMP_DTYPES[result.amp]:
        result.warnings.append(
            f"run.amp computes in {result.amp}, but model.llm.dtype is {dtype}: every step converts the language model "
            "and keeps a copy; give both the same type"
        )


def judge_run(result: RunPlan, config: Config) -> None:
    """Where it computes, what was not measured, too little memory."""
    gpu = result.placement.device
    if not isinstance(config.run, TrainingConfig):
        result.warnings.append("not a training run: of memory only the weights are counted, of time nothing")
    else:
        if result.amp is None and result.datasets:
            result.warnings.append("run.amp: no: what learns computes in fp32, far below the half-precision peak")
        if config.run.device == "cpu":
            result.warnings.append(f"run.device is cpu: planned as if on {gpu.name}")
        if any(not d.measured for d in result.datasets):
            result.warnings.append(
                "lengths are not measured where data or tokenizer are absent: every sample is taken at task.max_txt_len"
            )
    peak = 0.0 if result.costs is None else result.costs.peak
    if peak > (1 - MARGIN) * result.room:
        line = f"{peak / 1e9:.1f} GB of {gpu.memory_gb:.0f} GB on each {gpu.name}"
        if peak > result.room:
            result.problems.append(f"the run does not fit: {line}; {_remedy(result)}")
        else:
            result.warnings.append(f"memory is tight: {line}; the prediction is good to {MARGIN:.0%}")


def _remedy(result: RunPlan) -> str:
    """What each key saves by itself, and the fastest combination that fits."""
    own = next((v for v in result.variants if v.chosen), None)
    if own is None:
        return "take GPUs with more memory"
    saving = {v.changes[0]: (own.uncut - v.uncut) / 1e9 for v in result.variants if len(v.changes) == 1}
    lines = [f"{key} saves {saved:.1f} GB" for key, saved in saving.items() if saved > 0]
    fitting = [v for v in result.variants if v.parts is not None]
    if not fitting:
        return "; ".join([*lines, "nothing of it is enough: take GPUs with more memory, or more of them with fsdp"])
    fastest = min(v.throughput.step_seconds for v in fitting)
    # Smaller batches use a GPU less well than the assumed utilisation says: of equally fast ones take the largest.
    equal = [v for v in fitting if v.throughput.step_seconds <= (1 + SLACK) * fastest]
    best = min(equal, key=lambda v: (v.parts, v.throughput.serial_seconds))
    smaller = f" with every batch size and batch_tokens divided by {best.parts}" if best.parts > 1 else ""
    return "; ".join([*lines, f"--options {best.options}{smaller} fits, at {best.peak / 1e9:.1f} GB"])


def _chance(bad: int, tried: int, share: float) -> float:
    """The chance of at least `bad` unusable items among `tried` when `share` of all are."""
    return sum(comb(tried, k) * share**k * (1 - share) ** (tried - k) for k in range(bad, tried + 1))
