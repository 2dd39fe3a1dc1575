"""Optimizers by name; Muon is PyTorch's, but for the precision in which it iterates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chatbridge.common.optim import AdamWConfig, Muon, MuonConfig, build_optimizers, set_learning_rate
from chatbridge.runners import TrainingConfig

SHAPES = [(24, 40), (40, 24), (16, 16)]


class Precisions(TorchDispatchMode):
    """Notes the types of all that is multiplied."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.__name__:
            self.seen |= {a.dtype for a in args if isinstance(a, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def matrices() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for matrix in optimizer.param_groups[0]["params"]:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()


def test_on_a_cpu_no_product_is_in_half_precision():
    with Precisions() as precisions:
        train(Muon(matrices()))
    assert precisions.seen == {torch.float32}


@pytest.mark.parametrize(
    "settings", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3}]
)
def test_what_it_does_is_pytorchs_up_to_rounding(settings):
    ours, theirs = matrices(), matrices()
    train(Muon(ours, lr=0.02, **settings))
    train(torch.optim.Muon(theirs, lr=0.02, **settings))
    start = matrices()
    for one, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert moved > 0.1 and (one - other).norm() < 0.02 * moved  # bf16 has 8 bits


def test_the_update_is_nearly_orthogonal():
    torch.manual_seed(0)
    (matrix,) = parameters = [torch.nn.Parameter(torch.randn(20, 32))]
    before = matrix.detach().clone()
    matrix.grad = torch.randn(20, 32)
    Muon(parameters, lr=1.0, weight_decay=0.0).step()
    values = torch.linalg.svdvals(before - matrix.detach())
    assert values.min() > 0.5 and values.max() < 1.5


def test_its_state_is_pytorchs_and_comes_back():
    ours = matrices()
    optimizer = Muon(ours, lr=0.02)
    train(optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    again = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    resumed = Muon(again, lr=0.5)
    resumed.load_state_dict(state)
    train(optimizer)
    train(resumed)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    torch.optim.Muon(matrices()).load_state_dict(state)


def test_a_closure_is_called_and_matrices_without_a_gradient_stay():
    first, second = matrices()[:2]
    before = second.detach().clone()

    def closure():
        first.grad = torch.ones_like(first)
        return torch.tensor(3.0)

    assert Muon([first, second]).step(closure) == 3.0
    assert torch.equal(second, before)
    with pytest.raises(ValueError, match="2D"):
        Muon([torch.nn.Parameter(torch.ones(3))])


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    return [("matrix", torch.nn.Parameter(torch.ones(2, 3))), ("bias", torch.nn.Parameter(torch.ones(3)))]


def test_keys_of_its_own_stand_before_those_of_the_run():
    run = {"output_dir": "", "init_lr": 1e-3, "weight_decay": 0.1, "betas": [0.8, 0.9], "muon_lr": 0.02}
    (plain,) = build_optimizers(parameters(), TrainingConfig(**run))
    (own,) = build_optimizers(parameters(), TrainingConfig(**run, optimizer=AdamWConfig(lr=2e-3, weight_decay=0.0)))
    rest, muon = build_optimizers(parameters(), TrainingConfig(**run, optimizer=MuonConfig(weight_decay=0.3)))
    set_learning_rate([plain, own, rest, muon], 5e-4)  # half of the way
    shown = [[one.param_groups[0][name] for name in ("lr", "weight_decay")] for one in (plain, own, rest, muon)]
    assert shown == [[5e-4, 0.1], [1e-3, 0.0], [5e-4, 0.1], [0.01, 0.3]]
    assert [one.param_groups[0]["betas"] for one in (plain, own, rest)] == [(0.8, 0.9)] * 3


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"init_lr": 0.0, "optimizer": MuonConfig()}, "run.init_lr must be positive"),
        ({"amp": "fp16", "optimizer": MuonConfig()}, "run.optimizer muon: amp fp16 .* take amp: bf16"),
        ({"optimizer": AdamWConfig(betas=[0.9])}, "betas: two numbers"),
    ],
)
def test_keys_that_do_not_go_together(run, said):
    with pytest.raises(ValueError, match=said):
        build_optimizers(parameters(), TrainingConfig(output_dir="", **run))
