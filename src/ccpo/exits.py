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
# Waits until a process has ended, for a minute at most, and writes a line.
_SAY_AFTER = """
import os, select, sys
end = select.poll()
end.register(os.pidfd_open(int(sys.argv[1])), select.POLLIN)
end.poll(60_000)
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

    Under `python -X dev` the error is raised as it is, with its traceback.

    Args:
        command (`str`): what the line begins with, such as `"ccpo train"`.
        more (`type[Exception]`): further errors that are the user's to mend.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, *more) as error:
        if sys.flags.dev_mode or isinstance(error, BrokenPipeError):
            raise
        refuse(command, one_line(error))


def refuse(command: str, message: str) -> NoReturn:
    """
    Say in one line on stderr what is wrong, and exit with status 2.

    `accelerate launch` and `torchrun` end with a traceback of their own when a worker fails. The first worker's line
    is said again after it, so that it is the last on the screen.

    Args:
        command (`str`): what the line begins with.
        message (`str`): what is wrong, and what to do.
    """
    rank, line = os.environ.get("RANK", "0"), f"{command}: error: {message}\n"
    sys.stdout.flush()
    if rank != "0":
        sys.stderr.write(f"[rank {rank}] {line}")
    elif os.environ.get(LINE_FILE):
        Path(os.environ[LINE_FILE]).write_text(line, encoding="utf-8")
    else:
        sys.stderr.write(line)
        launched = LINE_FILE not in os.environ and {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & {
            *os.environ
        }
        if launched and hasattr(os, "pidfd_open"):
            words = [sys.executable, "-c", _SAY_AFTER, str(os.getppid()), line]
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    sys.stderr.flush()
    sys.exit(STATUS)


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
