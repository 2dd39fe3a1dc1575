"""Assembly by name, the one training loop, and evaluation."""

from chatbridge.runners.assembly import Assembly
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.evaluation import EvaluationRunner
from chatbridge.runners.evaluation_config import EvaluationConfig
from chatbridge.runners.training import TrainingRunner

__all__ = ["Assembly", "EvaluationConfig", "EvaluationRunner", "TrainingConfig", "TrainingRunner"]
