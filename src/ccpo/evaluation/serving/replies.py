"""What is sent of a team's answer, as it is drawn or at its end: the same text, cut at the same places."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ...generation import Completion
from ...team.prompts import whole_characters
from ...team.topology import Topology
from ..team import TeamAnswer

logger = logging.getLogger(__name__)

Send = Callable[[str, str], None]  # field of the message, and what comes to it


class UntilStop:
    """
    A text that comes in pieces, up to the first stop string in it.

    Args:
        stops (`Sequence[str]`): the stop strings.

    Attributes:
        stopped (`bool`): whether one has come.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops, self.stopped = tuple(stops), False
        self._text, self._given = "", 0

    def add(self, piece: str) -> str:
        """What can be given away with this piece: no beginning of a stop string."""
        if self.stopped:
            return ""
        self._text += piece
        found = [at for stop in self.stops if (at := self._text.find(stop, self._given)) >= 0]
        self.stopped = bool(found)
        left = len(self._text) - self._given  # what was given away begins no stop string
        held = (n for s in self.stops for n in range(1, min(len(s), left + 1)) if self._text.endswith(s[:n]))
        return self._give(min(found) if found else len(self._text) - max(held, default=0))

    def end(self, text: str) -> str:
        """The rest of a text that is known whole now."""
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
    One answer of a team on its way to a client.

    `content` is the text that answers; `reasoning_content` the others', in the order in which the team has them, each
    below a line with its role's name. Of a vote the content is known at the end alone, and all voters are reasoning.
    Roles that speak at the same time may be heard on several threads.

    Args:
        topology ([`Topology`]): who speaks.
        stop (`Sequence[str]`): where a text that answers ends.
        send (`Callable`): gets what there is to send.
    """

    def __init__(self, topology: Topology, stop: Sequence[str], send: Send):
        self.shown = None if topology.answer == "vote" else topology.answer_roles[-1]
        self.stop, self._send = tuple(stop), send
        self._texts = {name: UntilStop(stop if name in topology.answer_roles else ()) for name in topology.role_names}
        self._waiting = {name: "" for name in topology.role_names if name != self.shown}
        self._order, self._whole = list(self._waiting), set()
        self._labelled: str | None = None  # the role whose line was the last
        self._lock = threading.Lock()

    def hear(self, role: str, piece: str, completion: Completion | None) -> bool:
        """A piece of a role's text, or that it is whole; returns whether no more of it is needed."""
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
        while self._order:  # the first that is not whole is heard as it speaks, those behind it wait
            name = self._order[0]
            if new := self._waiting[name]:
                self._waiting[name] = ""
                self._pass_on("reasoning_content", self._label(name) + new)
            if name not in self._whole:
                break
            if name != self._labelled:  # it said nothing
                self._pass_on("reasoning_content", self._label(name))
            self._order.pop(0)
        return text.stopped

    def _label(self, name: str) -> str:
        """The line above a role's text, before its first piece."""
        if name == self._labelled:
            return ""
        line = f"[{name}]\n" if self._labelled is None else f"\n\n[{name}]\n"
        self._labelled = name
        return line

    def end(self, answer: TeamAnswer) -> str:
        """Send the answer of a vote, and say why the answer ended."""
        if self.shown is None:
            self._pass_on("content", whole_characters(UntilStop(self.stop).end(answer.text)))
        stopped = self._texts[answer.role].stopped
        return "length" if answer.completions[answer.role].truncated and not stopped else "stop"

    def _pass_on(self, field: str, text: str) -> None:
        if text:
            self._send(field, text)


def usage_of(answers: Sequence[TeamAnswer]) -> dict[str, Any] | None:
    """Tokens that all roles read and wrote; `None` where a generator does not tell."""
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
