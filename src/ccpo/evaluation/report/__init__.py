"""What a run leaves, as one HTML file: curves, evaluations, and every episode to look at."""

from .page import write_report
from .run import ReportError

__all__ = ["ReportError", "write_report"]
