r"""
Where an answer stands in a text; standard library only.

One reader serves two: the verifier takes the answer from its place, and the leak guard takes every such place out of a
thought. A place is a box (`\boxed{34}`, `\boxed 34`, `\fbox{34}`) or a phrase: `#### 34`, `Answer: 34`, "the answer is
34", `**Final Answer: 34**`, `<answer>34</answer>`.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache

from .boxes import has_boxed, last_box, strip_boxed

MAX_TEXT = 100_000  # characters of a text, counted from its end, in which an answer is looked for
MAX_ANSWER = 4_000  # characters of what a box holds that are handed on
MAX_BARE = 200  # characters of a text, or of what follows a phrase, that may be an answer
PROBE_SECONDS = 5  # for all the texts on which a pattern of one's own is tried
MAX_PASSES = 4  # of the leak guard, before it takes out the phrases' own words

_ENVIRONMENT = re.compile(
    r"\$\$((?:\\.|[^$\\])+)\$\$|\$((?:\\.|[^$\\])+)\$|(?<!\\)\\\((.+?)\\\)|(?<!\\)\\\[(.+?)\\\]", re.DOTALL
)
_INTEGER = re.compile(r"-?(?:[1-9][0-9]?(?:,[0-9]{3}){1,9}|[0-9]{1,30})")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,)\s*(?=[0-9]{3}(?![0-9]))")  # 1,\!200  1{,}200  1\,200
_TRAILING = re.compile(r"(?<![\\.])[.,;:]\Z")

# Where a phrase begins; its word is found first, so that the rest is matched in a window of bounded size.
_ANCHOR = re.compile(r"(?<![\w</])answers?(?!\w)|<answer>|^[ \t]{0,8}####", re.IGNORECASE | re.MULTILINE)
_CLOSE_TAG = re.compile("</answer>", re.IGNORECASE)
_BEFORE = re.compile(
    r"(?:#{1,6}\s+)?[*_]{0,3}(?:\b(?:so|thus|hence|therefore),?\s+)?(?:\b(?:the|my|our)\s+)?"
    r"(?:\b(?:final|correct|right)\s+)?\Z",
    re.IGNORECASE,
)
_LINK = re.compile(
    r"(?:[*_\s]{0,4}(?:\s(?:to|of|for)\s[^\n.:=$\\]{1,60}?\s)?\s{0,2}"
    r"(?:is|are|equals|(?:should|would|must)\s+be)\b|[*_ \t]{0,4}[:=])"
    r"(?:[*_\s]{0,4}[:=])?(?:\s+(?:therefore|thus|hence|then|simply|just|indeed|exactly|equal\s+to|given\s+by|option|choice))?"
    r"[*_:]{0,3}\s{0,8}[*_]{0,3}\s{0,4}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[*_: \t]{0,6}\n\s{0,8}[*_]{0,3}")
_MARKS = re.compile(r"[*_]{1,3}")
_STOP = re.compile(r"(?:(?<![\s.][apAP]\.[mM])(?<!\W[apAP])(?<!\\)[.!?](?=\s|\Z)|[.!]?\*\*|\n|</|<\|)")
_STOP_SIGN = re.compile(r"[.!?*\n<]")  # how every stop begins: one class of characters is found ten times as fast
_CLAUSE = re.compile(
    r"[,;]?\s+(?:since|because|which|where|so that|as (?:required|desired|needed|expected|claimed)|I hope)\b.*"
    r"|\s*[(]\s*(?:since|because)\b.*",
    re.DOTALL,
)
_HEADINGS = re.compile(
    r"(?:step|part|case|solution|remark|conclusion|explanation|verification|check|summary|note|plan|proof|analysis|result)s?\b[\s0-9.:]*\Z",
    re.IGNORECASE,
)
# A text is prose if it has one of these, if a word is followed by a number, or if it has many words.
_COMMAND = re.compile(r"\\(?:text\w*|[mh]box|math[a-z]+|operatorname|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{2,}(?:['’][a-z]+)?")
_PROSE = re.compile(
    r"\b(?:so|thus|hence|therefore|then|because|since|is|are|was|were|be|been|it|we|you|he|she|they|this|that|these|those|there|here"
    r"|the|to|from|with|get|gets|got|have|has|had|find|need|needs|can|could|will|would|must|should|let|use|using|used|first|next"
    r"|finally|not|but|if|when|where|which|what|who|how|why|now|do|does|did|our|my|your|their|its|his|her|into|answer|by|between"
    r"|compute|calculate|add|subtract|multiply|divide|solve|consider|note|suppose|assume|step|plan|given|look|at|obtain|gives|equals)\b",
    re.IGNORECASE,
)
_WORD_NUMBER = re.compile(
    r"(?!(?:and|or|approximately|approx|exactly|base|mod|hours?|hrs?|minutes?|mins?|seconds?|feet|foot|ft|inch(?:es)?|yards?|pounds?|lbs?"
    r"|dollars?|cents?|days?|weeks?|months?|years?|degrees|km|cm|mm|kg|meters?|kilometers?|grams?|kilograms?|January|February|March|April|May|June"
    r"|July|August|September|October|November|December|ln|log|sin|cos|tan|sqrt|pi)\b)\b[A-Za-z]{2,}\s+[0-9$]",
    re.IGNORECASE,
)
MAX_WORDS = 6
_SENTENCE = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:[A-Za-z][A-Za-z'’-]*\s+){1,6}(?:is|are|equals)\s+(\S.{0,80}?)[.!]?",
    re.IGNORECASE,
)
_NOT_SUBJECT = re.compile(
    r"\b(?:one|not|no|nobody|never|cannot|none|wrong|incorrect|false|unlikely|if|maybe|perhaps|guess|either|or|possible|another|might|could|neither)\b",
    re.IGNORECASE,
)


def _clean(text):
    text = re.sub(r"\A(?:\*\*|`)|(?:\*\*|`)\Z", "", text.strip())
    return _THOUSANDS.sub("", _TRAILING.sub("", text.strip()).strip())


def _unwrap(text):
    """Without the dollar signs around everything: `$x$` gives x."""
    text = _clean(text)
    match = _ENVIRONMENT.fullmatch(text)
    return _clean(match.group(match.lastindex)) if match else text


def _is_prose(text):
    plain = _COMMAND.sub(" 0 ", text)
    return bool(len(_WORD.findall(plain)) > MAX_WORDS or _PROSE.search(plain) or _WORD_NUMBER.search(plain))


def bare_answer(text):
    """The answer that a whole text is, `None` where it is prose, has several lines or nothing in it."""
    text = text.strip()
    if not text or len(text) > MAX_BARE:
        return None
    answer = _unwrap(text)
    if not re.search(r"\w|[∅∞]|\\[a-z]", answer) or "\n" in answer or _is_prose(answer):
        return None
    return answer


def _stop(text, start=0):
    """The first stop from `start` on, or `None`."""
    sign = _STOP_SIGN.search(text, start)
    return _STOP.search(text, sign.start()) if sign else None


def _answer_after(text, start):
    """`(end, answer)` of the answer that begins at `start`, or `None` where none does."""
    window = text[start : start + MAX_BARE + 1]
    for opening, closing in (("$$", "$$"), (r"\[", r"\]")):  # a formula on lines of its own
        if window.startswith(opening):
            end = window.find(closing, 2)
            if end < 0:
                return None
            formula = " ".join(window[:end].split()) + closing
            stop = _stop(window, end + 2)
            rest = window[end + 2 : stop.start() if stop else len(window)]
            answer = bare_answer(formula + rest)
            return None if answer is None else (start + end + 2 + len(rest), answer)
    stop = _stop(window)
    end = stop.start() if stop else len(window)
    if (stop is None and len(window) > MAX_BARE) or (stop and stop.group() == "?"):  # a question states nothing
        return None
    kept = _CLAUSE.sub("", window[:end])
    answer = bare_answer(kept)
    return None if answer is None else (start + len(kept.rstrip()), answer)


def _phrases(text):
    """`(start, end, answer)` of every phrase that states an answer, in linear time."""
    found, position = [], 0
    for match in _ANCHOR.finditer(text):
        if match.start() < position:
            continue
        token, start, end = match.group().lower(), match.start(), match.end()
        if token == "<answer>":
            close = _CLOSE_TAG.search(text, end, end + MAX_ANSWER)
            inner = text[end : close.start()] if close else ""
            if not inner.strip():
                continue
            stated = _phrases(inner)  # <answer>The answer is 34.</answer>
            place = start, close.end(), stated[-1][2] if stated else _unwrap(inner)
        elif token.endswith("####"):
            line = text[end : end + MAX_BARE + 1].split("\n", 1)[0]
            answer = bare_answer(line)
            if answer is None or _HEADINGS.match(answer):
                continue
            place = start, end + len(line), answer
        else:
            link = _LINK.match(text, end, min(len(text), end + 160))
            heading = _HEADING.match(text, end, min(len(text), end + 40)) if link is None else None
            after = _answer_after(text, (link or heading).end()) if link or heading else None
            if after is None:
                continue
            head = text[max(0, start - 40) : start]
            before = _BEFORE.search(head)
            if heading and not re.search("final|[#*]", before.group(), re.IGNORECASE):
                continue
            marks = _MARKS.match(text, after[0]) if before.group().startswith("*") else None
            place = start - (len(head) - before.start()), marks.end() if marks else after[0], after[1]
        found.append(place)
        position = place[1]
    return found


def _without(text, places, filler):
    """The text with the filler instead of each place, in linear time."""
    kept, position = [], 0
    for start, end, _ in places:
        kept += text[position:start], filler
        position = end
    return "".join([*kept, text[position:]])


@dataclass(frozen=True)
class AnswerReader:
    r"""
    Finds where the answer stands. A box comes first, else the last phrase counts; boxes that form one answer are one.

    Args:
        pattern (`str`, *optional*):
            A regular expression whose one group is the answer, for a prompt that asks for the answer in a way of its
            own. Its last match counts, before any box, and the built-in phrases are not read. It should be linear.

    Example:
        ```python
        >>> AnswerReader().extract("So we add.\n\n**Final Answer: 34**")
        '34'
        >>> AnswerReader(r"RESULT = (.+)").extract("RESULT = 34")
        '34'
        ```
    """

    pattern: str | None = None

    def __post_init__(self):
        if self.pattern is not None:
            check_pattern("pattern", self.pattern)

    @cached_property
    def _regex(self):
        return re.compile(self.pattern, re.MULTILINE)

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """`(start, end, answer)` of every phrase, or match of the pattern, that states an answer; boxes apart."""
        if self.pattern is None:
            return _phrases(text)
        return [(*match.span(), match[1]) for match in self._regex.finditer(text) if (match[1] or "").strip()]

    def extract(self, text: str) -> str | None:
        """
        The answer that a text gives, as LaTeX; `None` where it gives none.

        Without a place, a text that is a bare answer as a whole is one, and so is the end of a single short sentence
        ("The share is 35%."); not where a pattern says how answers are marked.
        """
        text = text[-MAX_TEXT:]
        places = self.find(text) if self.pattern is not None else None
        box = None if places else last_box(text)
        if box is not None:
            return _unwrap(box)[-MAX_ANSWER:] or None
        places = self.find(text) if places is None else places
        if places:
            return _unwrap(places[-1][2])[-MAX_ANSWER:]
        if self.pattern is not None or has_boxed(text):
            return None
        return bare_answer(text) or _sentence_answer(text)

    def has(self, text: str) -> bool:
        """Whether the text has a place where an answer stands, or a box that never closes."""
        return has_boxed(text) or bool(self.find(text))

    def strip(self, text: str) -> str:
        """
        The leak guard: the text without every place at which the verifier would read an answer; the text itself where
        it has none. A text that is a number as a whole has no such place and stays: what marks an answer is removed.
        """
        for _ in range(MAX_PASSES):
            text = strip_boxed(text)
            places = self.find(text)
            if not places:
                return text
            text = _without(text, places, "")
        while places:  # a text made so that each removal brings a new place together
            text = strip_boxed(_without(text, places, " \n"))
            text = re.sub(r"answer|####", " ", text, flags=re.IGNORECASE)
            places = self.find(text)
        return text


DEFAULT_READER = AnswerReader()


def reader_of(outcome) -> AnswerReader:
    """The reader of an outcome function that has one, else the default."""
    reader = getattr(outcome, "reader", None)
    return reader if isinstance(reader, AnswerReader) else DEFAULT_READER


def check_pattern(name: str, pattern: str) -> None:
    """Raise where a pattern is no regular expression with exactly one group, or matches the empty text."""
    remedy = "Write a pattern with one group, which holds the answer, such as 'RESULT = (.+)'."
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{name}` must be a regular expression, got {pattern!r}: {error}. {remedy}") from error
    if compiled.groups != 1:
        raise ValueError(f"`{name}` must have exactly one group, got {compiled.groups} in {pattern!r}. {remedy}")
    if compiled.search(""):
        raise ValueError(f"`{name}` must not match an empty text, got {pattern!r}. {remedy}")
    if not _is_quick(pattern):
        raise ValueError(
            f"`{name}` takes over {PROBE_SECONDS} s to search a text of {MAX_TEXT:,} characters, got "
            f"{pattern!r}. Remove parts that match anything, such as a leading `.*`, and nested repetitions."
        )


@lru_cache(maxsize=64)
def _is_quick(pattern):
    """Whether a pattern reads long texts made against it in time; in a process of its own, which can be ended."""
    words = [" ", "\n", "a", "1", "a ", "a1 b\n", *re.findall(r"[^\W_][\w =:.-]*", pattern)]
    probe = (
        "import json, re, sys\n"
        "pattern, size, words = json.load(sys.stdin)\n"
        "for word in words: sum(1 for _ in re.compile(pattern, re.MULTILINE).finditer((word * size)[:size]))"
    )
    given = json.dumps([pattern, MAX_TEXT, words])
    try:
        subprocess.run([sys.executable, "-c", probe], input=given, text=True, timeout=PROBE_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        return False
    return True


def _sentence_answer(text):
    """`The share is 35%.`: what a text of one short sentence ends with, if that has a digit."""
    text = text.strip()
    match = _SENTENCE.fullmatch(text) if len(text) <= MAX_BARE and "\n" not in text else None
    if match is None or _NOT_SUBJECT.search(text[: match.start(1)]):
        return None
    answer = bare_answer(match[1])
    return answer if answer and re.search("[0-9]", answer) else None


def gold_answer(text):
    r"""
    The answer in a reference text: after a closing `####`, else in its boxes, else the text itself, else what prose
    states.

    Args:
        text (`str`):
            `72`, `$\frac{1}{2}$`, a GSM8K solution, a solution with `\boxed{}`, or prose with an answer in it.

    Returns:
        `str`: the answer as LaTeX; empty where there is none.
    """
    text = text[-MAX_TEXT:]
    last_line = text.rpartition("####")[2].strip() if "####" in text else ""
    if last_line and "\n" not in last_line:  # "####" is a heading too, in solutions written as Markdown
        text = last_line
    box = last_box(text)
    if box is not None:
        return _unwrap(box)[-MAX_ANSWER:]
    if places := _phrases(text):
        return _unwrap(places[-1][2])
    answer = _unwrap(text)
    if _is_prose(answer):
        environments = list(_ENVIRONMENT.finditer(text[-MAX_ANSWER:]))
        if environments:
            return _clean(environments[-1].group(environments[-1].lastindex))
    return answer


def plain_integer(answer):
    """The value of an answer such as `-5` or `1,200`, which needs no grammar to compare; `None` for any other."""
    return int(answer.replace(",", "")) if answer is not None and _INTEGER.fullmatch(answer) else None
