"""The plan of ``run.strategy: fsdp`` against two real processes: bytes kept, gathered, alive at the worst moment."""

from __future__ import annotations

import json
import math
import os
import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param, _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import _disable_current_modes

from chatbridge.common.devices import DEVICES
from chatbridge.models import CausalLM, CausalLMConfig
from chatbridge.models.simulation import as_fake
from chatbridge.planning.fsdp import ShardGroups
from chatbridge.planning.memory import CONTEXT_BYTES, resident_memory, step_memory
from chatbridge.planning.parameters import count_parameters
from chatbridge.planning.placement import Placement
from chatbridge.planning.recorder import BACKWARD, ENCODE, LOSS, NEXT_LAYER, Recorder
from chatbridge.planning.simulator import Simulator, blank_batch, rows_of
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.strategy import Strategy, no_reduction
from tests.planning.test_simulator import model, on_meta, shape_of

pytestmark = pytest.mark.slow

WORLD = 2

GATHERED = {
    "layers are largest": {},
    "checkpointing": {"checkpointing": True},
    "tables are largest": {"vocabulary": 4001},
    "one table at both ends": {"tied": True},
}
ALIVE = {
    "amp": {"dtype": "bfloat16", "amp": True},
    "amp checkpointing": {"dtype": "bfloat16", "amp": True, "checkpointing": True},
    "fp32, accumulated": {"accumulate": 2},
}


def language_model(vocabulary=101, checkpointing=False, tied=False):
    """Sizes that two processes cannot share evenly."""
    torch.manual_seed(0)
    made = CausalLM.from_config({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 40, "num_hidden_layers": 4,
        "num_attention_heads": 4, "intermediate_size": 75, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": tied,
    })  # fmt: skip
    return CausalLM(CausalLMConfig(path="", gradient_checkpointing=checkpointing), made.model)


class Gathering:
    """Follows FSDP2's buffers and gathered tensors, whose storages change size where no dispatch mode can see it.

    Attributes:
        now, peak: bytes of them, and the most there were. received: bytes put together so far.
        changed: called with the bytes of every tensor that comes or goes.
    """

    def __init__(self, monkeypatch, changed=lambda bytes: None):
        self.now = self.peak = self.received = 0
        self.changed = changed
        comm = _fsdp_collectives.DefaultAllGather
        allocate, send, gather = comm.allocate, comm.__call__, _fsdp_param_group.foreach_all_gather
        enter, leave = _fsdp_param.alloc_storage, _fsdp_param.free_storage

        def buffer(comm, *args, **kwargs):
            made = allocate(comm, *args, **kwargs)
            size = made.untyped_storage().nbytes()
            self.add(size)
            weakref.finalize(made.untyped_storage(), self.add, -size)
            return made

        def sent(comm, output_tensor, input_tensor, *args, **kwargs):
            # gloo's thread lets go of its tensors when it pleases: it is given others.
            with _disable_current_modes():
                whole, piece = torch.empty_like(output_tensor), input_tensor.clone()
                handle = send(comm, whole, piece, *args, **kwargs)
                output_tensor.copy_(whole)
            return handle

        def gathering(params, *args, **kwargs):
            self.received += WORLD * sum(p._sharded_param_data.nbytes for p in params)
            return gather(params, *args, **kwargs)

        def resized(change, tensor):
            before = tensor.untyped_storage().nbytes()
            change(tensor)
            size = tensor.untyped_storage().nbytes() - before
            self.add(size)
            self.changed(size)

        monkeypatch.setattr(comm, "allocate", buffer)
        monkeypatch.setattr(comm, "__call__", sent)
        monkeypatch.setattr(_fsdp_param_group, "foreach_all_gather", gathering)
        monkeypatch.setattr(_fsdp_param, "alloc_storage", lambda tensor: resized(enter, tensor))
        monkeypatch.setattr(_fsdp_param, "free_storage", lambda tensor: resized(leave, tensor))

    def add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)

    def take_peak(self):
        """The peak since it was taken last."""
        peak, self.peak = self.peak, self.now
        return peak


def kept_bytes(module):
    """Bytes of the parameters that this process has, the padding of pieces included."""
    found = {}
    for parameter in module.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        found[local.untyped_storage()._cdata] = local.untyped_storage().nbytes()
    return sum(found.values())


def gathered_tensors(module):
    """What FSDP2 copies gathered parameters to; of size 0 between steps."""
    groups = [m._get_fsdp_state()._fsdp_param_group for m in module.modules() if isinstance(m, FSDPModule)]
    return [t for group in groups if group for p in group.fsdp_params for t in p.all_gather_outputs]


def sharded(made, rank):
    config = TrainingConfig(output_dir="", strategy="fsdp")
    strategy = Strategy(config, torch.device("cpu"), rank, WORLD, rank, WORLD)
    return strategy, strategy.build(lambda device: made)


class Holder(nn.Module):
    """A model as the strategy expects it, with a language model and nothing else."""

    def __init__(self, llm):
        super().__init__()
        self.llm = llm
        self.bridges = nn.ModuleDict()


def gather_case(settings, rank, monkeypatch):
    """What one forward and backward pass of a sharded language model keeps and gathers."""
    llm = sharded(Holder(language_model(**settings)), rank)[1].llm.train()
    ids = torch.randint(3, 101, (2, 7))
    positions = torch.arange(7).expand(2, 7)

    def step(peak=lambda: None):
        peaks = []
        embeds = llm.embed(ids).clone().requires_grad_()
        peaks.append(peak())
        logits = llm.logits_at(embeds, torch.ones_like(ids), positions, torch.ones_like(ids, dtype=torch.bool))
        peaks.append(peak())
        logits.sum().backward()
        return [*peaks, peak()]

    step()  # tensors are made at their first gathering, and resized from then on
    with monkeypatch.context() as patches:
        gathering = Gathering(patches)
        peaks = step(gathering.take_peak)
    return {"kept": kept_bytes(llm), "received": gathering.received, "peaks": peaks, "left": gathering.now}


def alive_case(settings, rank, monkeypatch):
    """Bytes alive at the worst moment of a whole training step."""
    settings = dict(settings)
    amp, accumulate = settings.pop("amp", False), settings.pop("accumulate", 1)
    strategy, made = sharded(model(**settings), rank)
    wrapped = strategy.wrap(made)
    given = blank_batch(shape_of(), rows_of(made, shape_of()))
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], foreach=True)

    def step():
        for index in range(accumulate):
            with no_reduction(wrapped, index < accumulate - 1):
                with torch.autocast("cpu", torch.bfloat16) if amp else nullcontext():
                    loss = wrapped(given).loss_sum
                loss.backward()
                del loss
        optimizer.step()

    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        step()
    buckets = [p.grad for p in made.parameters() if p.grad is not None]
    states = [t for s in optimizer.state.values() for t in s.values()]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in made.parameters()]
    there = [*local, *made.buffers(), *states, *given.media.values(), *buckets, *gathered_tensors(made)]
    bucketed = sum({g.untyped_storage()._cdata: g.untyped_storage().nbytes() for g in buckets}.values())
    with monkeypatch.context() as patches, Recorder(made, known=there) as live:
        Gathering(patches, live.add)
        optimizer.zero_grad(set_to_none=True)
        step()
    held = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in there}.values())
    return {"kept": kept_bytes(made), "buckets": bucketed, "peak": held + live.peak}


def planned_and_forked():
    """Exit status of a process that trains, forked from one that planned.

    Inside FakeTensorMode PyTorch's engine counts a GPU that is not there, if that is a process' first backward pass.
    """
    with torch.device("meta"):
        linear = nn.Linear(3, 3)
    with as_fake(linear)[0]:
        linear(torch.zeros(2, 3)).sum().backward()
    child = os.fork()
    if not child:
        try:
            torch.zeros((), requires_grad=True).backward()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work(rank, folder):
    forked = planned_and_forked()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = {"forked": forked}
        found["gathered"] = {case: gather_case(s, rank, monkeypatch) for case, s in GATHERED.items()}
        found["alive"] = {case: alive_case(s, rank, monkeypatch) for case, s in ALIVE.items()}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), WORLD)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_a_process_that_planned_can_fork_one_that_trains(ranks):
    assert [rank["forked"] for rank in ranks] == [0, 0]


@pytest.mark.parametrize("case", GATHERED)
def test_kept_and_gathered_bytes_are_exact(ranks, case):
    llm = language_model(**GATHERED[case])
    groups, where = ShardGroups(llm), Placement(DEVICES["a10"], WORLD, 1, "fsdp", False, llm.gradient_checkpointing)
    placed = groups.placed(where)
    assert placed.building == groups.total == sum(p.numel() * p.element_size() for p in llm.parameters())
    moments = (placed.gathered[ENCODE], placed.gathered[NEXT_LAYER], max(placed.gathered[m] for m in (LOSS, BACKWARD)))
    norm = 2 * WORLD * sum(math.ceil(rows / WORLD) * size for rows, size in groups.rest)
    for measured in (rank["gathered"][case] for rank in ranks):
        assert measured["kept"] == placed.kept and measured["received"] == placed.moved and measured["left"] == 0
        for peak, moment in zip(measured["peaks"], moments, strict=True):
            # The last norm belongs to no layer and is there, too, for part of the time.
            assert 0 <= peak - moment <= norm


@pytest.mark.parametrize("case", ALIVE)
def test_bytes_alive_under_fsdp(ranks, case):
    settings = dict(ALIVE[case])
    amp, accumulate = "bf16" if settings.pop("amp", False) else None, settings.pop("accumulate", 1)
    made, where = on_meta(**settings), Placement(DEVICES["a10"], WORLD, 1, "fsdp", accumulate=accumulate)
    groups, count = ShardGroups(made.llm), count_parameters(made)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad])
    simulator = Simulator(made, amp=amp, world=WORLD)
    update = simulator.update([optimizer])
    always = resident_memory(count, groups, where, update.state)
    step = step_memory(simulator.step(shape_of()), groups.placed(where), where, update, always.learnt)
    predicted = always.always - CONTEXT_BYTES + step.peak
    for measured in (rank["alive"][case] for rank in ranks):
        assert measured["kept"] == always.weights
        assert measured["buckets"] == always.buckets
        assert measured["peak"] == pytest.approx(predicted, rel=0.08)
