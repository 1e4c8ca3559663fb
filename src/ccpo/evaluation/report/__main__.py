"""
Write the report of a run, or of several that are compared: one HTML file, which needs no network.

    python -m ccpo.evaluation.report outputs/demo
    python -m ccpo.evaluation.report outputs/a outputs/b --output report.html

The run may be over, going on, or killed.
"""

import argparse
import sys

from .page import EPISODES, write_report
from .run import ReportError


def main(arguments: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m ccpo.evaluation.report", description=__doc__, formatter_class=form)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="`output_dir` of a run")
    parser.add_argument("--output", help="the file; by default report.html in the first run's folder")
    parser.add_argument("--max_episodes", type=int, default=EPISODES, help="more are sampled, by category")
    options = parser.parse_args(arguments)
    if options.max_episodes < 1:
        parser.error(f"--max_episodes must be at least 1, got {options.max_episodes}")
    try:
        path = write_report(options.runs, options.output, max_episodes=options.max_episodes)
    except (ReportError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
