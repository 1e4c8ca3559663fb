"""The report of a run: one HTML file with curves, evaluations, and episodes to look at."""

from .page import write_report
from .run import ReportError

__all__ = ["ReportError", "write_report"]
