"""Build what is sent of a team's answer. Text and cuts are the same with and without streaming."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ...generation import Completion
from ...team.prompts import whole_characters
from ...team.topology import Topology
from ..team import TeamAnswer

logger = logging.getLogger(__name__)

Send = Callable[[str, str], None]  # takes a field of the message and the text that is added to it


class UntilStop:
    """
    Passes on a text that comes in pieces, up to the first stop string.

    Args:
        stops (`Sequence[str]`): The stop strings.

    Attributes:
        stopped (`bool`): Whether a stop string has come.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops, self.stopped = tuple(stops), False
        self._text, self._given = "", 0

    def add(self, piece: str) -> str:
        """The text that can be sent after this piece. The end is held back if a stop string may begin there."""
        if self.stopped:
            return ""
        self._text += piece
        found = [at for stop in self.stops if (at := self._text.find(stop, self._given)) >= 0]
        self.stopped = bool(found)
        left = len(self._text) - self._given  # no stop string begins in the text that was sent
        held = (n for s in self.stops for n in range(1, min(len(s), left + 1)) if self._text.endswith(s[:n]))
        return self._give(min(found) if found else len(self._text) - max(held, default=0))

    def end(self, text: str) -> str:
        """The rest of the text, when the whole text is known."""
        if self.stopped:
            return ""
        given = self._text[: self._given]
        if not text.startswith(given):
            logger.warning("The tokens of an answer do not give back its text: %.80r became %.80r.", given, text)
        self._text = given + text[self._given :]
        rest = self.add("")
        return rest if self.stopped else rest + self._give(len(self._text))

    def _give(self, end: int) -> str:
        given, self._given = self._text[self._given : end], max(self._given, end)
        return given


class Choice:
    """
    One answer of a team that is being sent to a client.

    The field `content` has the text that answers. `reasoning_content` has the texts of the other roles, in the team's
    order, each below a line with the role's name. If the team votes, the content is known only at the end, and the
    texts of all voters are reasoning. Roles that write at the same time may call this on several threads.

    Args:
        topology ([`Topology`]): The team.
        stop (`Sequence[str]`): The stop strings, which end a text that answers.
        send (`Callable`): Called with the text to send.
    """

    def __init__(self, topology: Topology, stop: Sequence[str], send: Send):
        self.shown = None if topology.answer == "vote" else topology.answer_roles[-1]
        self.stop, self._send = tuple(stop), send
        self._texts = {name: UntilStop(stop if name in topology.answer_roles else ()) for name in topology.role_names}
        self._waiting = {name: "" for name in topology.role_names if name != self.shown}
        self._order, self._whole = list(self._waiting), set()
        self._labelled: str | None = None  # the role whose name was sent last
        self._lock = threading.Lock()

    def hear(self, role: str, piece: str, completion: Completion | None) -> bool:
        """Take a piece of a role's text, or its completion at the end. Returns whether the text may end."""
        with self._lock:
            return self._hear(role, piece, completion)

    def _hear(self, role: str, piece: str, completion: Completion | None) -> bool:
        text = self._texts[role]
        new = whole_characters(text.add(piece) if completion is None else text.end(completion.text))
        if role == self.shown:
            self._pass_on("content", new)
            return text.stopped
        self._waiting[role] += new
        if completion is not None:
            self._whole.add(role)
        while self._order:  # the first text that is not complete is sent as it is written; later ones wait
            name = self._order[0]
            if new := self._waiting[name]:
                self._waiting[name] = ""
                self._pass_on("reasoning_content", self._label(name) + new)
            if name not in self._whole:
                break
            if name != self._labelled:  # the role wrote nothing
                self._pass_on("reasoning_content", self._label(name))
            self._order.pop(0)
        return text.stopped

    def _label(self, name: str) -> str:
        """The line with the role's name, before the first piece of its text."""
        if name == self._labelled:
            return ""
        line = f"[{name}]\n" if self._labelled is None else f"\n\n[{name}]\n"
        self._labelled = name
        return line

    def end(self, answer: TeamAnswer) -> str:
        """Send the rest of the answer, which after a vote is all of it. Returns why the answer ended."""
        if self.shown is None:
            self._pass_on("content", whole_characters(UntilStop(self.stop).end(answer.text)))
        stopped = self._texts[answer.role].stopped
        return "length" if answer.completions[answer.role].truncated and not stopped else "stop"

    def _pass_on(self, field: str, text: str) -> None:
        if text:
            self._send(field, text)


def usage_of(answers: Sequence[TeamAnswer]) -> dict[str, Any] | None:
    """The numbers of tokens that all roles read and wrote; `None` if a generator does not report them."""
    said = [completion for answer in answers for completion in answer.completions.values()]
    read, written = [c.prompt_tokens for c in said], [c.tokens for c in said]
    if None in read or None in written:
        return None
    shown = sum(answer.completions[answer.role].tokens for answer in answers)
    return {
        "prompt_tokens": sum(read),
        "completion_tokens": sum(written),
        "total_tokens": sum(read) + sum(written),
        "completion_tokens_details": {"reasoning_tokens": sum(written) - shown},
    }
