"""Everything registered keeps to chatbridge/contracts.py; a new part needs a line in `SMALL` at most."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from chatbridge import contracts, register_all
from chatbridge.common.optim import build_optimizers, set_learning_rate
from chatbridge.common.registry import (
    ENCODERS,
    LLMS,
    LOGGERS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PROCESSORS,
    PROJECTORS,
    RUNNERS,
    SCHEDULES,
    TASKS,
)
from chatbridge.common.schema import Binder, to_plain
from chatbridge.evaluation.metrics import Prediction
from chatbridge.models.row_counts import RowCount, TokenShape, token_count, token_grid
from chatbridge.runners import TrainingConfig
from chatbridge.weights.coverage import compare
from chatbridge.weights.files import WeightSource
from chatbridge.weights.formats import detect
from chatbridge.weights.name_mapping import module_targets, read_encoder
from tests import tiny, toy_model

register_all()

SMALL = {
    "eva_vit": tiny.EVA,
    "beats": tiny.BEATS,
    "qformer": tiny.PERCEIVER,
    "resampler": {"num_queries": 4, "layers": 2, "heads": 2},
}
"""Registered name -> keys that make it small; what is not here is built as it is."""

MEDIA = {"eva_vit": (3, 28, 28), "beats": (64, 48)}
"""Encoder -> a frame or clip that it takes."""


def own(registry) -> list[str]:
    """The package's own parts: other tests register more."""
    return [name for name in registry if registry.get(name).target.__module__.startswith("chatbridge.")]


def config_of(registry, name: str, **more):
    keys = {key: value for key, value in SMALL.get(name, {}).items() if key != "name"}
    return registry.get(name).config(**keys | more)


def members(protocol) -> set[str]:
    return {name for name in {**vars(protocol), **protocol.__annotations__} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("registry", "contract"),
    [(ENCODERS, contracts.Encoder), (PROJECTORS, contracts.Projector), (LLMS, contracts.LanguageModel),
     (MODELS, contracts.Model), (TASKS, contracts.Task), (RUNNERS, contracts.Runner),
     (LOGGERS, contracts.Logger)],
    ids=["encoder", "projector", "language model", "model", "task", "runner", "logger"],
)  # fmt: skip
def test_members_that_are_not_made_in_init_are_there(registry, contract):
    methods = {name for name, value in vars(contract).items() if callable(value) or isinstance(value, property)}
    for name in own(registry):
        lacking = {m for m in methods if not m.startswith("_") and not hasattr(registry.get(name).target, m)}
        assert not lacking, f"{registry.kind} '{name}' lacks {lacking}"


@pytest.mark.parametrize("name", own(ENCODERS))
class TestEncoders:
    def build(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        return ENCODERS.build(config_of(ENCODERS, name)).eval()

    def test_tokens_are_as_it_states(self, name):
        encoder = self.build(name)
        assert isinstance(encoder, contracts.Encoder)
        tokens = encoder(torch.randn(2, *MEDIA[name]))
        assert tokens.shape == (2, token_count(encoder, MEDIA[name]), encoder.width)
        grid = token_grid(encoder, MEDIA[name])
        assert grid is None or (grid.dim() == 2 and grid.dtype == torch.int64)
        if grid is not None:
            assert len(set(grid.flatten().tolist())) == grid.numel() and 0 <= grid.min() <= grid.max() < tokens.shape[1]

    def test_its_files_are_recognised_and_read_strictly(self, name):
        encoder = self.build(name)
        if not hasattr(encoder, "file_format"):
            pytest.skip("reads its files itself")
        state = encoder.state_dict()
        state |= {copy: state[one] for copy, one in getattr(encoder, "copies", dict)().items()}
        assert detect(state) == name
        source = WeightSource.of(state)
        coverage = compare(read_encoder(encoder, source), source, module_targets(encoder))
        assert coverage.ok and coverage.tensors[0] == coverage.tensors[1] == len(encoder.state_dict())

    def test_items_do_not_see_each_other(self, name):
        encoder, media = self.build(name), torch.randn(3, *MEDIA[name])
        torch.testing.assert_close(encoder(media)[1:2], encoder(media[1:2]), atol=1e-5, rtol=1e-5)

    def test_it_learns(self, name):
        """The world's encoders are pre-trained from scratch with these very classes."""
        encoder = self.build(name).train()
        encoder(torch.randn(2, *MEDIA[name])).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())

    def test_on_the_meta_device_nothing_is_read(self, name):
        with torch.device("meta"):
            encoder = ENCODERS.build(config_of(ENCODERS, name, weights="not/read.pt"))
        assert all(parameter.is_meta for parameter in encoder.parameters())


GRID = torch.arange(1, 7).unflatten(0, (2, 3))
SHAPES = {"picture": (1, 7, GRID), "video": (3, 7, GRID), "no grid": (2, 5, None), "one token": (1, 1, None)}
WIDTH, D = 32, 48


class Counted(nn.Module):
    """An encoder of which only the numbers are asked."""

    def __init__(self, count: int, grid: torch.Tensor | None):
        super().__init__()
        self.token_count, self.token_grid = (lambda shape: count), (lambda shape: grid)


@pytest.mark.parametrize("name", own(PROJECTORS))
class TestProjectors:
    @pytest.mark.parametrize("case", SHAPES)
    def test_rows_are_as_many_as_it_says(self, name, case):
        frames, count, grid = SHAPES[case]
        config = config_of(PROJECTORS, name)
        told = PROJECTORS.get(name).target.rows(config, TokenShape((frames, 3), lambda: Counted(count, grid)))
        projector = PROJECTORS.build(config, WIDTH, D)
        rows = projector(torch.randn(2, frames, count, WIDTH), grid)
        assert rows.shape == (2, told, D)

    def test_everything_in_it_learns(self, name):
        projector = PROJECTORS.build(config_of(PROJECTORS, name), WIDTH, D).train()
        projector(torch.randn(2, 2, 7, WIDTH), GRID).square().sum().backward()
        assert all(p.grad is not None for p in projector.parameters())

    def test_media_do_not_see_each_other(self, name):
        projector, tokens = PROJECTORS.build(config_of(PROJECTORS, name), WIDTH, D).eval(), torch.randn(3, 2, 7, WIDTH)
        torch.testing.assert_close(projector(tokens, GRID)[1:2], projector(tokens[1:2], GRID))

    def test_sharing(self, name):
        target, config = PROJECTORS.get(name).target, config_of(PROJECTORS, name)
        if not hasattr(target, "may_differ"):
            pytest.skip("cannot be shared")
        assert set(target.may_differ) <= {field.name for field in dataclasses.fields(config)}
        first = PROJECTORS.build(config, WIDTH, D)
        second = PROJECTORS.build(config, WIDTH, D, shared=first)
        mine, theirs = set(first.parameters()), set(second.parameters())
        assert mine & theirs and len(theirs - mine) <= 1  # a query bank, if anything
        assert second(torch.randn(1, 1, 7, WIDTH), GRID).shape[2] == D

    def test_rows_start_as_long_as_they_are_wanted(self, name):
        projector = PROJECTORS.build(config_of(PROJECTORS, name), WIDTH, D).eval()
        if hasattr(projector, "scale_rows"):
            projector.scale_rows(5.0)
            lengths = projector(nn.functional.layer_norm(torch.randn(8, 1, 7, WIDTH), (WIDTH,)), GRID).norm(dim=-1)
            assert lengths.mean().item() == pytest.approx(5.0, rel=0.3)
            assert isinstance(projector.projection, nn.Linear)

    def test_on_the_meta_device(self, name):
        with torch.device("meta"):
            projector = PROJECTORS.build(config_of(PROJECTORS, name), WIDTH, D)
        assert all(parameter.is_meta for parameter in projector.parameters())

    def test_its_configuration_goes_round(self, name):
        config, binder = config_of(PROJECTORS, name), Binder("a.yaml", tiny.ROOT)
        plain = {"name": name, **to_plain(config)}
        assert binder.component(PROJECTORS, plain, "projector") == config and not binder.problems

    def test_rows_are_told_without_weights_and_in_workers(self, name):
        told = pickle.loads(
            pickle.dumps(RowCount(config_of(ENCODERS, "eva_vit"), config_of(PROJECTORS, name), "vision"))
        )
        bridge = toy_model.bridge(encoder=config_of(ENCODERS, "eva_vit"), projector=config_of(PROJECTORS, name))
        for frames in (1, 3):
            media = torch.randn(2, frames, *MEDIA["eva_vit"])
            assert told(media.shape[1:]) == bridge.rows(tuple(media.shape[1:])) == bridge(media).shape[1]


@pytest.mark.parametrize("name", own(PROCESSORS))
def test_processors_give_the_shape_that_they_state(name):
    processor = PROCESSORS.build(PROCESSORS.get(name).config())
    if not isinstance(processor, contracts.Processor):
        pytest.skip("reads text, not media")
    blank = processor.blank()
    assert tuple(blank.shape) == tuple(processor.shape) and blank.dtype == torch.float32


def test_what_a_language_model_and_a_model_set_up_is_there():
    model = toy_model.model()
    for part, contract in ((model.llm, contracts.LanguageModel), (model, contracts.Model)):
        assert not [name for name in members(contract) if not hasattr(part, name)]


@pytest.mark.parametrize("name", own(TASKS))
def test_what_a_task_sets_up_is_there(name):
    task = TASKS.build(TASKS.get(name).config())
    assert not [member for member in members(contracts.Task) if not hasattr(task, member)]


@pytest.mark.parametrize("name", own(OPTIMIZERS))
def test_optimizers_hold_everything_once_and_come_back(name):
    def made(state=None):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
        optimizers = build_optimizers(layers.named_parameters(), run)
        for optimizer, one in zip(optimizers, state or [], strict=bool(state)):
            optimizer.load_state_dict(one)
        return layers, optimizers

    def step(layers, optimizers):
        layers(torch.ones(2, 4)).square().sum().backward()
        set_learning_rate(optimizers, 1e-3)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    run = TrainingConfig(output_dir="", optimizer=OPTIMIZERS.configured(name))
    layers, optimizers = made()
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, layers.parameters()))
    step(layers, optimizers)
    others, resumed = made([copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers])
    others.load_state_dict(layers.state_dict())
    step(layers, optimizers)
    step(others, resumed)
    assert all(torch.equal(a, b) for a, b in zip(layers.parameters(), others.parameters(), strict=True))
    assert not torch.equal(layers[0].weight, made()[0][0].weight)


@pytest.mark.parametrize("name", own(SCHEDULES))
def test_schedules_are_functions_of_the_step(name):
    settings = {
        "init_lr": 1.0,
        "min_lr": 0.1,
        "warmup_lr": 0.2,
        "warmup_steps": 3,
        "iters_per_epoch": 5,
        "max_epoch": 2,
    }
    schedule = TrainingConfig(output_dir="", lr_sched=SCHEDULES.configured(name), **settings).schedule()
    rates = [schedule(step) for step in range(10)]
    assert rates == [schedule(step) for step in reversed(range(10))][::-1]
    assert rates[0] == 0.2 and max(rates) <= 1.0 and min(rates) >= 0.1


@pytest.mark.parametrize("name", own(METRICS))
def test_metrics_count_what_their_values_are_of(name):
    metric = METRICS.build(METRICS.configured(name))
    answers = [Prediction("a cat", ("cat",)), Prediction("dog", ("cat", "a dog")), Prediction("what", ())]
    for given in (answers, []):
        assert all(0 <= score.n <= len(given) for score in metric(given).values()) and metric(given)


@pytest.mark.slow
def test_types_keep_to_the_contracts_too():
    pytest.importorskip("mypy")
    # A process of its own: mypy changes the limit of recursion, which other tests live by.
    command = [sys.executable, "-m", "mypy", "tests/typed_parts.py"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
