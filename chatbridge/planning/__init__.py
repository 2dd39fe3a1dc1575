"""A run, planned before it is paid for (``train.py --plan``)."""

from chatbridge.common.devices import DEVICES, Device
from chatbridge.planning.plan import plan
from chatbridge.planning.result import Plan, PlanOptions

__all__ = ["DEVICES", "Device", "Plan", "PlanOptions", "plan"]
