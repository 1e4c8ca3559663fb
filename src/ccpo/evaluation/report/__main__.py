"""
Write the report of a run, or of several that are compared: one HTML file, which needs no network.

    ccpo report outputs/demo
    ccpo report outputs/a outputs/b --output report.html

The run may be over, going on, or killed.
"""

import sys

from ...exits import CommandParser, refusing
from .page import EPISODES, write_report


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser("ccpo report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="`output_dir` of a run")
    parser.add_argument("--output", help="the file; by default report.html in the first run's folder")
    parser.add_argument("--max_episodes", type=int, default=EPISODES, help="more are sampled, by category")
    options = parser.parse_args(arguments)
    if options.max_episodes < 1:
        parser.error(f"--max_episodes must be at least 1, got {options.max_episodes}")
    with refusing("ccpo report"):
        path = write_report(options.runs, options.output, max_episodes=options.max_episodes)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
