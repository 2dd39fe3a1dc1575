"""One optimizer step over any number of processes and micro-batches: the same numbers however they are divided."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.optim import set_learning_rate
from chatbridge.runners.strategy import no_reduction

SMALLEST_SCALE = 1.0
"""An fp16 loss scale below this leaves no gradient to speak of: the scaler has collapsed."""


@dataclass
class StepResult:
    """What a step did, equal on all processes but for `micro`.

    Attributes:
        loss: mean over the step's supervised tokens. losses: the same, dataset by dataset.
        drawn: how many of the samples are from which dataset.
        tokens, samples: of all processes.
        grad_norm: of all gradients, before clipping. grad_norms: component by component, when asked for.
        stop: some process was asked to stop.
        checksum: of the ids of all samples, however they are divided; two runs that read the same have the same.
        problem: why the weights were left as they were, "" where they moved.
        overflow: it was the fp16 scaler, looking for a scale that fits.
        micro: this process' samples and their losses, micro-batch by micro-batch.
    """

    loss: float
    losses: dict[str, float]
    drawn: dict[str, int]
    tokens: int
    samples: int
    grad_norm: float
    stop: bool
    checksum: int
    problem: str = ""
    overflow: bool = False
    grad_norms: dict[str, float] = field(default_factory=dict)
    micro: list[tuple[MultimodalBatch, list[float]]] = field(default_factory=list)


class OptimizerStep:
    """Forward, backward, join, check, clip, update.

    Every supervised token of every process and micro-batch weighs the same, wherever it was computed.

    Args:
        model: what learns. wrapped: the same, as `Strategy.wrap` gave it.
        optimizers: as accelerate prepared them.
        datasets: names, equal and in the same order on all processes.
        max_grad_norm: None does not clip.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        accelerator: Accelerator,
        datasets: list[str],
        max_grad_norm: float | None,
    ):
        self.model, self.wrapped, self.optimizers = model, wrapped, optimizers
        self.accelerator, self.datasets, self.max_grad_norm = accelerator, datasets, max_grad_norm
        self.world, self.device = accelerator.num_processes, accelerator.device
        self.branches = model.branches()
        self.components: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.components[".".join(name.split(".")[:3])].append(parameter)
        self.parameters = [p for group in self.components.values() for p in group]

    def __call__(
        self, micro: list[MultimodalBatch], rate: float, stop: bool = False, detail: bool = False
    ) -> StepResult:
        """Take a step with this process' share of the batch.

        Args:
            rate: learning rate. stop: this process was asked to stop. detail: norms of the components, too.
        """
        set_learning_rate(self.optimizers, rate)
        tokens, samples, checksum, stop, used = self._reduce_counts(micro, stop)
        outputs = []
        for number, batch in enumerate(micro):
            with no_reduction(self.wrapped, number < len(micro) - 1):
                with self.accelerator.autocast():
                    output = self.wrapped(batch.to(self.device, non_blocking=True))
                # DDP averages gradients over processes: multiply by their number to get the sum over all tokens.
                self.accelerator.backward(output.loss_sum * (self.world / max(tokens, 1)))
            outputs.append((output.loss_sum.detach(), output.sample_losses_B, output.sample_tokens_B))
        self._drop_unused(used)
        if self.accelerator.scaler is not None:
            for optimizer in self.optimizers:
                self.accelerator.scaler.unscale_(optimizer.optimizer)
        norm = self._norm(self.parameters)
        losses, samples_of = self._losses(micro, outputs)
        total = sum(loss for loss, _, _ in losses.values())
        result = StepResult(
            loss=total / max(tokens, 1),
            losses={name: loss / count for name, (loss, count, _) in losses.items() if count},
            drawn={name: int(drawn) for name, (_, _, drawn) in losses.items() if drawn},
            tokens=tokens,
            samples=samples,
            grad_norm=float(norm),
            stop=stop,
            checksum=checksum,
            micro=list(zip(micro, samples_of, strict=True)),
        )
        if detail:
            result.grad_norms = {name: float(self._norm(group)) for name, group in self.components.items()}
        self._update(result, norm)
        return result

    def dry_run(self, batch: MultimodalBatch) -> None:
        """A forward and a backward pass that change nothing."""
        with no_reduction(self.wrapped, True):
            with self.accelerator.autocast():
                output = self.wrapped(batch.to(self.device))
            output.loss_sum.backward()
        for parameter in self.parameters:
            parameter.grad = None

    def _reduce_counts(self, micro: list[MultimodalBatch], stop: bool) -> tuple[int, int, int, bool, set[str]]:
        """Over all processes: supervised tokens, samples, their checksum, whether to stop, and the branches in use."""
        mine = set().union(*(self.model.branches_of(batch) for batch in micro))
        tokens, samples = sum(b.supervised_tokens for b in micro), sum(len(b.ids) for b in micro)
        checksum = sum(zlib.crc32(name.encode()) for batch in micro for name in batch.ids)  # sums stay exact in fp64
        values = [tokens, samples, checksum, float(stop), *(float(name in mine) for name in self.branches)]
        tokens, samples, checksum, stop, *flags = self._sum(values)
        used = {name for name, flag in zip(self.branches, flags, strict=True) if flag}
        return int(tokens), int(samples), int(checksum), bool(stop), used

    def _sum(self, values: list[float]) -> list[float]:
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def _drop_unused(self, used: set[str]) -> None:
        """No gradient, rather than one of zeros, where no process used a branch: the optimizer leaves it alone, as it
        does on a single process."""
        kept = {id(p) for name in used for p in self.branches[name]}
        for name in self.branches.keys() - used:
            for parameter in self.branches[name]:
                if id(parameter) not in kept:
                    parameter.grad = None

    def _norm(self, parameters: list[nn.Parameter]) -> Tensor:
        grads = [p.grad for p in parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=self.device)

    def _losses(
        self, micro: list[MultimodalBatch], outputs: list[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[dict[str, list[float]], list[list[float]]]:
        """Dataset -> (summed loss, tokens, samples) over all processes, and this process' losses sample by sample."""
        flat = torch.cat(
            [torch.cat([total[None], losses, counts.to(losses)]).double() for total, losses, counts in outputs]
        )
        values = flat.tolist()  # one wait for the device
        sums = {name: [0.0, 0.0, 0.0] for name in self.datasets}
        samples_of, at = [], 0
        for batch, (_, losses, _) in zip(micro, outputs, strict=True):
            size = len(losses)
            whole, means, tokens = values[at], values[at + 1 : at + 1 + size], values[at + 1 + size : at + 1 + 2 * size]
            at += 1 + 2 * size
            samples_of.append(means)
            if len(set(batch.sources)) == 1:  # exact, not summed up again from means
                parts = [(batch.sources[0], whole, sum(tokens), size)]
            else:
                parts = [(n, m * t, t, 1) for n, m, t in zip(batch.sources, means, tokens, strict=True)]
            for name, *amounts in parts:
                sums[name] = [a + b for a, b in zip(sums[name], amounts, strict=True)]
        joined = iter(self._sum([value for row in sums.values() for value in row]))
        return {name: [next(joined) for _ in row] for name, row in sums.items()}, samples_of

    def _update(self, result: StepResult, norm: Tensor) -> None:
        """Move the weights, unless loss or gradient is not finite; say which in `result`."""
        scaler = self.accelerator.scaler
        wrong = [what for what, x in (("loss", result.loss), ("gradient", result.grad_norm)) if not math.isfinite(x)]
        if wrong:
            result.problem = f"{' and '.join(wrong)} not finite"
            if scaler is not None:
                result.overflow = wrong == ["gradient"] and scaler.get_scale() > SMALLEST_SCALE
                result.problem += f" at loss scale {scaler.get_scale():g}"
                scaler.update()
        else:
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
