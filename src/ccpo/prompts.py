"""Every prompt text, how a role's messages are built, and the leak guard."""

import re

THINKER_PROMPT = (
    "You are the Thinker of a team of two. Your partner, the Solver, reads what you write and then writes the solution."
    " Study the problem below and write the ideas and the plan that lead to its solution. Do not carry the solution out"
    " to the end and do not state the final answer.\n\nProblem:\n{problem}"
)
SOLVER_PROMPT = (
    "{problem}\n\nYour partner, the Thinker, wrote this plan. It may contain mistakes.\n\nPlan:\n{thought}\n\n"
    "Write the solution step by step and put the final answer within \\boxed{}."
)
SOLO_PROMPT = "{problem}\n\nWrite the solution step by step and put the final answer within \\boxed{}."

_BOX = re.compile(r"\\boxed\s*")
_BARE_BOX = re.compile(r"\\boxed\s*(?:\\[A-Za-z]+|[^\s\\${}]+)")
# A sentence ends at a newline or at [.!?] followed by white space, so that "1.5" and "f(x)=x!y" stay whole.
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?]+[\"')\]$]*(?=\s|$)|(?=\n)|$)[ \t]*\n*")
_INSTRUCTION = re.compile(
    r"(?:[,;:]\s*)?(?:\b(?:and|then|and then)\s+)?(?:\bplease\s+)?"
    r"\b(?:put|output|writ|giv|provid|present|plac|return|enclos|express|report|stat|submit|wrap|your|the final|the answer)"
    r"\w*\b[^\n]*\\boxed.*$",
    re.IGNORECASE | re.DOTALL,
)
_OPENER = re.compile(
    r"\s*(?:let'?s|please|put|output|write|give|provide|present|place|return|enclose|express|report|state|show|box|wrap|"
    r"make sure|remember|your|the final|the answer|solve|think|reason|you (?:must|should|need)|answer|submit|note|at the end|"
    r"finally)\b",
    re.IGNORECASE,
)


def _box_end(text: str, start: int) -> int:
    """Index behind the group that opens at `text[start] == "{"`; the text's end where it never closes."""
    depth, position = 0, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 2  # an escaped brace is no brace
            continue
        depth += (char == "{") - (char == "}")
        position += 1
        if depth == 0:
            return position
    return len(text)


def strip_boxed(text: str) -> str:
    r"""
    The leak guard: remove every `\boxed{…}` with balanced braces, wherever it stands.

    A box that never closes is removed to the end of the text, `\boxed 5` together with its argument, and the dollar
    signs that would be left empty with them.

    Args:
        text (`str`): a thought.

    Returns:
        `str`: the thought as the Solver may read it; the text itself where it has no box.
    """
    pieces, position = [], 0
    while (match := _BOX.search(text, position)) is not None:
        pieces.append(text[position : match.start()])
        if text.startswith("{", match.end()):
            position = _box_end(text, match.end())
        else:
            bare = _BARE_BOX.match(text, match.start())
            position = bare.end() if bare else match.end()
        for fence in ("$$", "$"):
            if pieces[-1].endswith(fence) and text.startswith(fence, position):
                pieces[-1] = pieces[-1].removesuffix(fence)
                position += len(fence)
                break
    if not pieces:
        return text
    return strip_boxed("".join(pieces) + text[position:])  # what the removal joined may be a box again


def has_boxed(text: str) -> bool:
    r"""Whether the text contains a `\boxed`, the answer's place."""
    return _BOX.search(text) is not None


def strip_answer_instruction(problem: str) -> str:
    r"""
    Remove the sentence that asks for the final answer within `\boxed{}`, which contradicts the Thinker's instruction.

    A sentence that only instructs goes whole. One that also asks the question ("Find x and put it in \boxed{}.") loses
    its instruction alone.

    Args:
        problem (`str`): the problem, possibly ending in "…output the final answer within \boxed{}."

    Returns:
        `str`: the problem without the instruction; the problem itself where it has none.
    """
    if not has_boxed(problem):
        return problem
    kept = []
    for sentence in _SENTENCE.findall(problem):
        if not has_boxed(sentence):
            kept.append(sentence)
        elif not _OPENER.match(sentence):  # a question: cut the instruction off, keep a box that belongs to it
            question, cuts = _INSTRUCTION.subn("", sentence)
            kept.append(question.rstrip(" ,;:") + ".\n" if cuts else sentence)
    return "".join(kept).rstrip() or problem


def problem_text(prompt: str | list[dict]) -> str:
    """The problem that a prompt states: the text itself, or the content of the last user message."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return message["content"]
    raise ValueError(
        f"`prompt` has no user message with text content: {prompt!r}. Give each row a string or chat messages whose "
        "last user message states the problem."
    )


def fill(template: str, **fields: str) -> str:
    """Put the fields into a template, in one pass, so that braces and field names inside the texts stay as they are."""
    return re.sub("|".join(re.escape(f"{{{name}}}") for name in fields), lambda m: fields[m.group()[1:-1]], template)


def build_messages(template: str, prompt: str | list[dict], **fields: str) -> str | list[dict]:
    """
    A role's prompt, in the format of the dataset's.

    Args:
        template (`str`): text with `{problem}` and one `{name}` per field.
        prompt (`str` or `list[dict]`): the dataset's prompt, text or chat messages.
        fields (`str`): what the role reads besides, e.g. `thought="…"`.

    Returns:
        `str` for a text prompt; for messages the same messages with the last user message's content replaced, so that
        a system message stays.
    """
    text = fill(template, **{"problem": problem_text(prompt), **fields})
    if isinstance(prompt, str):
        return text
    last = max(i for i, message in enumerate(prompt) if message.get("role") == "user")
    return [*prompt[:last], {**prompt[last], "content": text}]


def build_thinker_messages(prompt: str | list[dict], template: str = THINKER_PROMPT) -> str | list[dict]:
    """The Thinker's prompt: the problem without the sentence that asks for a boxed answer."""
    return build_messages(template, prompt, problem=strip_answer_instruction(problem_text(prompt)))


def build_solver_messages(prompt: str | list[dict], thought: str, template: str = SOLVER_PROMPT) -> str | list[dict]:
    """The Solver's prompt: the problem and the thought, which passes the leak guard here."""
    return build_messages(template, prompt, thought=strip_boxed(thought))


def build_solo_messages(prompt: str | list[dict], template: str = SOLO_PROMPT) -> str | list[dict]:
    """The counterfactual prompt: the same Solver reads the problem alone."""
    return build_messages(template, prompt)
