"""A run, planned before it is paid for (``train.py --plan``)."""

from chatbridge.common.devices import DEVICES, Device
from chatbridge.planning.run_plan import PlanOptions, RunPlan, plan

__all__ = ["DEVICES", "Device", "PlanOptions", "RunPlan", "plan"]
