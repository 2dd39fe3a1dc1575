"""A training run on one page (``report.html``), and runs side by side (``python -m chatbridge.report``)."""

from chatbridge.report.figures import Figures
from chatbridge.report.run import Run
from chatbridge.report.writing import RunReport, write_report

__all__ = ["Figures", "Run", "RunReport", "write_report"]
