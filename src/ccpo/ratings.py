"""
SEPO's ratings: how a role is asked for one, how its reply is read, and how the reply is constrained to be readable.

After the verdict each role divides the credit (right answer) or the blame (wrong answer) over the two by one of nine
pairs, whose first number is the Thinker's share ([arXiv 2603.21563](https://huggingface.co/papers/2603.21563)).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch

PAIRS: tuple[tuple[float, float], ...] = tuple((i / 10, (10 - i) / 10) for i in range(9, 0, -1))
MAX_RATING_TOKENS = 512
OUTCOMES = ("correct", "wrong")
RATING_PREFIX = '{"outcome": "%s", "pair": ['
RATING_PROMPT = """You were the {role} of a team of two. The Thinker read the problem and wrote a plan; the Solver read
both and wrote the answer. The answer has been checked: it is {outcome}.

### Problem
{problem}

### The Thinker's plan
{thought}

### The Solver's answer
{answer}

### Your rating
The answer is {outcome}, so the {quantity} is to be divided: the more a role did to bring it about, the more it gets.
Choose one of these nine pairs. The first number is the Thinker's share of the {quantity}, the second the Solver's.
{pairs}
Reply with one JSON object and nothing else, your two numbers in place of T and S:
{{"outcome": "{outcome}", "pair": [T, S]}}"""

_SHARES = {pair: pair[0] for pair in PAIRS}
_MEANING = {"correct": "correct", "wrong": "wrong", "incorrect": "wrong"}
# Every pattern is linear: no neighbouring repeats match the same characters, and those with `$` see only a window.
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PERCENT = r"([ \t]?\\?%)?"
_JSON_NUMBER = rf"({_NUMBER}(?:[eE][+-]?[0-9]+)?){_PERCENT}"
_MARK = re.compile(r'[{}\[\]"]')
_STRING_END, _COLON = re.compile(r'"|\\.', re.DOTALL), re.compile(r"\s*:\s*")
_NEXT = r'(?=\s*(?:\}|,\s*["}]))'
_VALUES = {
    "outcome": re.compile(rf'"([^"\\]*)"{_NEXT}'),
    "pair": re.compile(rf"\[\s*{_JSON_NUMBER}\s*,\s*{_JSON_NUMBER}\s*\]{_NEXT}"),
}
_ALONE = re.compile(rf"(?<![\w.%+\-−])({_NUMBER}){_PERCENT}(?!\w|\.[0-9])")
_JOIN = re.compile(r"\s*(?:[,/]|and\b)\s*", re.IGNORECASE)
_WORD = re.compile(r"(?<![\w-])(correct|incorrect|wrong)(?![\w-])", re.IGNORECASE)
_ADVERB = r"(?:(?:an?|the|quite|entirely|fully|completely|really|exactly)[ \t]{1,4})?"
_NOT = re.compile(rf"(?:\b(?:not|never|no)|n['’]t)[ \t]{{1,4}}{_ADVERB}$", re.IGNORECASE)
_KEYS = {
    key: re.compile(rf"\b{key}[\"'`*_\\]{{0,4}}\s{{0,4}}(?:[:=]|is\b|was\b)\W{{0,8}}(?:not\s{{1,4}})?$", re.IGNORECASE)
    for key in _VALUES
}


def parse_rating(text: str | None, outcome: str) -> float | None:
    """
    Read a rating: the Thinker's share of the credit or of the blame.

    SEPO, [arXiv 2603.21563](https://huggingface.co/papers/2603.21563). Two readings, both linear in the text's length:

    1. Objects that have both keys, `{"outcome": "correct", "pair": [0.7, 0.3]}`, anywhere in the text; other keys are
       ignored, and so is an object inside the value of one. If there is such an object, only objects count: those are
       readable whose outcome is "correct", "wrong" or "incorrect", whose pair is two numbers (no strings, no booleans)
       that form one of the nine pairs, and in which neither key stands twice. The readable ones must agree.
    2. Without one, plain text: an outcome word ("correct", "wrong", "incorrect"; "not correct" means wrong) and a pair
       (`0.7, 0.3`, `0.7/0.3`, `0.7 and 0.3`, `70% / 30%`, `70/30 %`; any brackets). All outcome words must agree, and
       so must all pairs; where they do not, as after an echo of the nine pairs, the last one in the text counts if it
       has its key (`pair: 0.7, 0.3`, `outcome: wrong`) and none that has the key differs. Three joined numbers or more
       are a list, not a pair.

    Args:
        text (`str` or `None`): the role's reply; `None` is no reply and so invalid.
        outcome (`str`): the verdict, `"correct"` or `"wrong"`. A rating that states the other one is invalid.

    Returns:
        `float` or `None`: exactly one of 0.9, 0.8, …, 0.1; `None` if the rating is invalid.

    Raises:
        `ValueError`: `outcome` is not one of the two. `TypeError`: `text` is neither text nor `None`.

    Example:

    ```python
    >>> parse_rating('I would say {"outcome": "correct", "pair": [0.7, 0.3]}', "correct")
    0.7
    ```
    """
    _check_outcome(outcome)
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a `str` or `None`, got {type(text).__name__}.")
    statements = _read_objects(text) or [(_agreed(_stated_outcomes(text)), _agreed(_stated_shares(text)))]
    ratings = {statement for statement in statements if None not in statement}
    stated, share = ratings.pop() if len(ratings) == 1 else (None, None)
    return share if stated == outcome else None


def parse_shares(texts: Sequence[str | None], outcomes: Sequence[str | float | None]) -> list[float]:
    """
    Read one rating per episode with [`parse_rating`].

    Args:
        texts (`Sequence[str | None]`): the replies.
        outcomes (`Sequence[str | float | None]`): `"correct"`, `"wrong"`; `None` or NaN for an unscorable episode.

    Returns:
        `list[float]`: the Thinker's shares, NaN where the rating is invalid or the episode unscorable.
    """
    if len(texts) != len(outcomes):
        raise ValueError(f"`texts` and `outcomes` must have the same length, got {len(texts)} and {len(outcomes)}.")
    shares = [
        parse_rating(text, outcome) if outcome is not None and outcome == outcome else None
        for text, outcome in zip(texts, outcomes, strict=True)
    ]
    return [float("nan") if share is None else share for share in shares]


def build_rating_messages(
    *,
    role: str,
    problem: str,
    thought: str,
    answer: str,
    outcome: str,
    max_thought_chars: int = 12_000,
    max_answer_chars: int = 16_000,
) -> list[dict[str, str]]:
    """
    The prompt, one user message, that asks a role to rate an episode after the verdict.

    A thought or answer that is too long keeps its end, where the answer has its box, behind a "…". The form asked for
    has T and S for the numbers: a copy of the prompt is then no rating, and no pair is suggested.

    Args:
        role (`str`): who is asked, `"thinker"` or `"solver"`.
        problem, thought, answer (`str`): the episode.
        outcome (`str`): the verdict, `"correct"` (credit is divided) or `"wrong"` (blame).
        max_thought_chars, max_answer_chars (`int`, default to 12,000 and 16,000): limits, the "…" included.
    """
    _check_outcome(outcome)
    if role not in ("thinker", "solver"):
        raise ValueError(f'`role` must be "thinker" or "solver", got {role!r}.')
    content = RATING_PROMPT.format(
        role=role.capitalize(),
        outcome=outcome,
        quantity="credit" if outcome == "correct" else "blame",
        problem=problem,
        thought=keep_end(thought, "max_thought_chars", max_thought_chars),
        answer=keep_end(answer, "max_answer_chars", max_answer_chars),
        pairs=", ".join(f"[{t}, {s}]" for t, s in PAIRS),
    )
    return [{"role": "user", "content": content}]


def rating_choices(outcome: str) -> tuple[str, list[str]]:
    """
    The constrained reply: its forced beginning, and the nine continuations in the order of `PAIRS`.

    `parse_rating(prefix + choices[i], outcome)` is `PAIRS[i][0]`. The choices differ in digits alone, so a tokenizer
    that splits digits gives all nine the same number of tokens and their summed log-probabilities compare.
    """
    _check_outcome(outcome)
    return RATING_PREFIX % outcome, [f"{t}, {s}]}}" for t, s in PAIRS]


def shares_from_log_probs(
    log_probs: torch.Tensor, *, expectation: bool, generator: torch.Generator | None = None, temperature: float = 1.0
) -> torch.Tensor:
    """
    The Thinker's shares from the log-probabilities of the nine choices.

        p = softmax(log_probs / temperature)      share = Σ_i p_i t_i  (`expectation`),  else t_i with i drawn from p

    Args:
        log_probs (`torch.Tensor` of shape `(n, 9)`):
            Summed log-probability of each of the [`rating_choices`], normalised or not; `-inf` is never chosen. A row
            with a NaN or `+inf`, or with `-inf` only, gives a NaN share.
        expectation (`bool`): whether to take the mean over the nine pairs instead of one draw.
        generator (`torch.Generator`, *optional*): source of the draws, on the device of `log_probs`.
        temperature (`float`, defaults to 1.0): divides the log-probabilities.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32: the shares.
    """
    if log_probs.ndim != 2 or log_probs.shape[1] != len(PAIRS):
        raise ValueError(f"`log_probs` must have shape (n, {len(PAIRS)}), got {tuple(log_probs.shape)}.")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be > 0, got {temperature}. For the likeliest pair, give a small one.")
    shares = torch.tensor([t for t, _ in PAIRS], device=log_probs.device)  # (9,)
    probs = torch.softmax(log_probs.float() / temperature, dim=1)  # (n, 9)
    if expectation:
        return probs @ shares
    unknown = probs.isnan().any(dim=1)  # (n,); torch.multinomial refuses NaN
    drawn = torch.multinomial(probs.masked_fill(unknown[:, None], 1.0), 1, generator=generator)[:, 0]  # (n,)
    return shares[drawn].masked_fill(unknown, torch.nan)


def _check_outcome(outcome: str) -> None:
    if outcome not in OUTCOMES:
        raise ValueError(f'`outcome` must be the verdict, "correct" or "wrong", got {outcome!r}.')


def keep_end(text: str, name: str, limit: int) -> str:
    """The last `limit` characters of a text, with "…" at the cut; the text itself where it fits."""
    if limit < 1:
        raise ValueError(f"`{name}` must be at least 1, got {limit}.")
    return text if len(text) <= limit else "…" + text[len(text) - limit + 1 :]


def _share(first: str, first_percent: str | None, second: str, percent: str | None) -> float | None:
    """The Thinker's share if two numbers form an allowed pair; rounding forgives 0.30000000000000004, no more."""
    scale = 100 if percent else 1
    pair = (round(float(first) / scale, 9), round(float(second) / scale, 9))
    return None if first_percent and not percent else _SHARES.get(pair)


def _read_objects(text: str) -> list[tuple[str | None, float | None]]:
    r"""
    (outcome, share) of every outermost object that has both keys; `None` for a value that cannot be right.

    JSON read leniently (models write `\sqrt` and newlines in strings), in one pass over brackets and strings. `stack`
    has -1 per open list and, per open object, how many ratings were found before it: later ones lie inside it.
    """
    found, stack, fields, position = [], [], {}, 0  # fields: depth -> key -> value
    while (mark := _MARK.search(text, position)) is not None:
        char, position = mark[0], mark.end()
        if char == "{":
            stack.append(len(found))
        elif not stack:
            continue  # quotes and lists of the prose
        elif char == "[":
            stack.append(-1)
        elif char == '"':
            end = next((m.end() for m in _STRING_END.finditer(text, position) if m[0] == '"'), None)
            if end is None:
                break
            key, position = text[position : end - 1], end
            if key in _VALUES and stack[-1] >= 0 and (colon := _COLON.match(text, end)):
                field, value = fields.setdefault(len(stack), {}), _VALUES[key].match(text, colon.end())
                field[key] = _read_value(key, value) if value and key not in field else None
        elif (char == "}") != (stack[-1] >= 0):  # brackets that do not match: not JSON
            stack.clear()
            fields.clear()
        else:
            field, before = fields.pop(len(stack), {}), stack.pop()
            if len(field) == len(_VALUES):
                found[before:] = [(field["outcome"], field["pair"])]
    return found


def _read_value(key: str, value: re.Match) -> str | float | None:
    return _share(*value.groups()) if key == "pair" else _MEANING.get(value[1].strip().lower())


def _agreed(statements: Iterable[tuple[str | float | None, bool]]) -> str | float | None:
    """What all (value, has its key) say; failing that, the last one if it has the key and all others with it agree."""
    values, keyed, last = set(), set(), False
    for value, last in statements:
        values.add(value)
        if last:
            keyed.add(value)
    chosen = values if len(values) == 1 else keyed if last else ()
    return next(iter(chosen)) if len(chosen) == 1 else None


def _before(pattern: re.Pattern, text: str, start: int, window: int = 40) -> bool:
    return pattern.search(text, max(0, start - window), start) is not None


def _stated_outcomes(text: str) -> Iterator[tuple[str, bool]]:
    for word in _WORD.finditer(text):
        right = (word[0].lower() == "correct") != _before(_NOT, text, word.start())
        yield OUTCOMES[not right], _before(_KEYS["outcome"], text, word.start())


def _stated_shares(text: str) -> Iterator[tuple[float | None, bool]]:
    """
    (share, has its key) of every run of joined numbers that may be meant as a rating: two that form an allowed pair;
    and with share `None`, so that they contradict, two others that have the key, or more with an allowed pair in them.
    """
    last, start, count, share, allowed = None, 0, 0, None, 0
    for number in chain(_ALONE.finditer(text), [None]):
        if last and number and _JOIN.fullmatch(text, last.end(), number.start()):
            share = _share(*last.groups(), *number.groups())
            count, allowed = count + 1, allowed + (share is not None)
        else:
            keyed = count > 1 and _before(_KEYS["pair"], text, start)
            if allowed or keyed:
                yield (share if count == 2 else None), keyed
            start, count, allowed = number.start() if number else 0, 1, 0
        last = number
