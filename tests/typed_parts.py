"""The parts of the package as chatbridge/contracts.py says they are: for mypy, never run."""

from chatbridge import contracts as c
from chatbridge import models as m
from chatbridge import processors as p
from chatbridge import runners as r
from chatbridge import tasks as t
from chatbridge.common import loggers as l
from chatbridge.common import optim as o
from chatbridge.evaluation.metrics import ExactMatch


def encoders(eva: m.EvaVit, beats: m.Beats) -> list[c.Encoder]:
    return [eva, beats]


def projectors(a: m.QFormerProjector, b: m.MlpProjector, d: m.ResamplerProjector) -> list[c.Projector]:
    return [a, b, d]


def models(whole: m.ChatBridge, language: m.CausalLM) -> tuple[c.Model, c.LanguageModel]:
    return whole, language


def processors(image: p.ImageProcessor, video: p.VideoProcessor, audio: p.AudioProcessor) -> list[c.Processor]:
    return [image, video, audio]


def tasks(alignment: t.AlignmentTask, instruction: t.InstructionTask) -> list[c.Task]:
    return [alignment, instruction]


def runners(training: r.TrainingRunner, evaluation: r.EvaluationRunner) -> list[c.Runner]:
    return [training, evaluation]


def metrics(exact: ExactMatch) -> list[c.Metric]:
    return [exact]


def optimizers() -> list[c.Optimizer]:
    return [o.adamw, o.muon]


def loggers(lines: l.JsonLines, board: l.TensorBoard, wandb: l.Wandb) -> list[c.Logger]:
    return [lines, board, wandb]
