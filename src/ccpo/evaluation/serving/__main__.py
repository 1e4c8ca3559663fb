"""
Serve a team as a model behind an OpenAI-compatible endpoint.

    ccpo serve outputs/run
    ccpo serve outputs/run --host 0.0.0.0 --port 8080 --api_key KEY --max_requests 512
    ccpo serve --models Qwen/Qwen2.5-1.5B-Instruct --topology think_solve

On SIGTERM or SIGINT, open requests are answered before the server ends.
"""

import argparse
import logging
import os
import socket
import threading
from pathlib import Path

from ...exits import CommandParser, refusing
from ..command import add_team_arguments, load_team
from .batching import THREAD

logger = logging.getLogger(__name__)

KEY = "CCPO_API_KEY"
_REST = 5  # seconds for an answer to end for which nobody waits any more


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser("ccpo serve", __doc__)
    add_team_arguments(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to be bound to; by default none but this machine reaches it")
    add("--port", type=int, default=8000, help="0 for a free one, which the log names")
    add("--name", help="the model's; by default that of the folder")
    add("--api_key", default=os.environ.get(KEY), help=f"what clients must send; by default {KEY} of the environment")
    add("--batch_size", type=int, default=32, help="answers that are drawn at once")
    add("--max_requests", type=int, default=256, help="requests in flight, waiting ones too; one more gets 429")
    add("--max_body_bytes", type=int, default=2**20, help="of a request; a larger one gets 413")
    return parser.parse_args(arguments)


def check_port(host: str, port: int) -> None:
    """
    Make sure, before a model loads, that the address can be bound.

    Raises:
        `ValueError`: it is in use, or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"`--host {host} --port {port}` cannot be bound ({reason}). Name another port; 0 takes a free one."
            ) from error


def run(options: argparse.Namespace) -> None:
    """Load the team and serve it."""
    from .app import serve

    check_port(options.host, options.port)
    team, _ = load_team(options, {"backend": options.backend, "seed": None})
    name = options.name or (Path(options.team).resolve().name if options.team is not None else "team")
    limits = {limit: getattr(options, limit) for limit in ("batch_size", "max_requests", "max_body_bytes")}
    own = {"name": name, "api_key": options.api_key, "text": options.text or None}
    serve(team, host=options.host, port=options.port, **own, **limits)
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD):
            thread.join(_REST)
            if thread.is_alive():  # Python would wait for it, and an endpoint may take very long
                logger.warning("The team was still answering: what it drew is thrown away.")
                logging.shutdown()
                os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    """The command `ccpo serve`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with refusing("ccpo serve", RuntimeError):
        run(parse_arguments(arguments))


if __name__ == "__main__":
    main()
