"""How a command ends on what its user can mend: one line on stderr, last on the screen, and exit status 2."""

import argparse
import difflib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

STATUS = 2
# Set by `ccpo train`: the file in which a worker leaves its line, which is said when all else has been said; empty
# where the process has no launcher above it.
LINE_FILE = "CCPO_LINE_FILE"
TRACEBACK = "CCPO_TRACEBACK"
# Waits until a process has ended, for ten seconds at most, and writes a line.
_SAY_AFTER = """
import os, select, sys
end = select.poll()
end.register(os.pidfd_open(int(sys.argv[1])), select.POLLIN)
end.poll(10_000)
sys.stderr.write(sys.argv[2])
"""


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean …?`, of the known name that is most like one that is not known; empty if none is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean `{found[0]}`?" if found else ""


def one_line(error: BaseException) -> str:
    """An error's message and its notes, as one line."""
    return " ".join(" ".join([str(error), *getattr(error, "__notes__", ())]).split())


@contextmanager
def refusing(command: str, *more: type[Exception]) -> Iterator[None]:
    """
    End the process by [`refuse`] on a `ValueError`, an `OSError`, an `ImportError` or one of `more`.

    With `CCPO_TRACEBACK=1` in the environment the error is raised as it is, with its traceback.

    Args:
        command (`str`): what the line begins with, such as `"ccpo train"`.
        more (`type[Exception]`): further errors that are the user's to mend, where code of this package raises them.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, *more) as error:
        ours = _is_ours(error)
        if os.environ.get(TRACEBACK) or isinstance(error, BrokenPipeError) or (isinstance(error, more) and not ours):
            raise
        refuse(command, one_line(error) + ("" if ours else f" ({TRACEBACK}=1 in the environment shows where.)"))


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package raised the error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _is_launched() -> bool:
    """Whether a launcher that is not `ccpo train` has started this process."""
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    if LINE_FILE in os.environ or not parent.is_file():
        return False
    words = parent.read_bytes()
    return any(name in words for name in (b"accelerate", b"torchrun", b"torch.distributed"))


def refuse(command: str, message: str, status: int = STATUS) -> NoReturn:
    """
    Say in one line on stderr what is wrong, and exit.

    `accelerate launch` and `torchrun` end with a traceback of their own when a worker fails. The first worker's line
    is said again after it, so that it is the last on the screen.

    Args:
        command (`str`): what the line begins with.
        message (`str`): what is wrong, and what to do.
        status (`int`, defaults to 2): the exit status.
    """
    rank, line = os.environ.get("RANK", "0"), f"{command}: error: {message}\n"
    sys.stdout.flush()
    if rank != "0":
        sys.stderr.write(f"[rank {rank}] {line}")
    elif os.environ.get(LINE_FILE):
        Path(os.environ[LINE_FILE]).write_text(line, encoding="utf-8")
    else:
        sys.stderr.write(line)
        if _is_launched() and hasattr(os, "pidfd_open"):
            words = [sys.executable, "-c", _SAY_AFTER, str(os.getppid()), line]
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    sys.stderr.flush()
    sys.exit(status)


class CommandParser(argparse.ArgumentParser):
    """An [`~argparse.ArgumentParser`] that takes no abbreviations and says what is wrong by [`refuse`]."""

    def __init__(self, command: str, description: str | None):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(command, description=description, formatter_class=form, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            names = [name for action in self._actions for name in action.option_strings]
            self.error(f"`{rest[0]}` is not an argument.{nearest(rest[0].split('=')[0], names)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        refuse(self.prog, f"{message}{'' if message[-1] in '.?' else '.'} `{self.prog} --help` lists the arguments.")
