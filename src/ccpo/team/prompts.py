"""Every prompt text, how a role's messages are built, and the leak guard."""

import re

from .answers import DEFAULT_READER, AnswerReader
from .boxes import group_end, has_boxed, strip_boxed  # noqa: F401 (`has_boxed` can be imported from here)

Prompt = str | list[dict]

THINKER_PROMPT = (
    "You are the Thinker of a team of two. Your partner, the Solver, reads what you write and then writes the "
    "solution. Study the problem below and write the ideas and the plan that lead to its solution. Do not carry the "
    "solution out to the end and do not state the final answer.\n\nProblem:\n{problem}"
)
SOLVER_PROMPT = (
    "{problem}\n\nYour partner, the Thinker, wrote this plan. It may contain mistakes.\n\nPlan:\n{thought}\n\n"
    "Write the solution step by step and put the final answer within \\boxed{}."
)
SOLO_PROMPT = "{problem}\n\nWrite the solution step by step and put the final answer within \\boxed{}."
CRITIQUE_PROMPT = (
    "A partner of yours answered the problem below. Check the answer step by step. Say what is wrong and how to mend "
    "it, or say that it is right. Do not state the final answer yourself.\n\nProblem:\n{problem}\n\n"
    "Your partner's answer:\n{answer}"
)
REWRITE_PROMPT = (
    "{problem}\n\nYou wrote this answer.\n\nYour answer:\n{answer}\n\nYour partner wrote this critique of it, which "
    "may contain mistakes.\n\nCritique:\n{critique}\n\nWrite the solution anew, step by step, and put the final "
    "answer within \\boxed{}."
)
_ASK_FOR_ANSWER = "Write the solution step by step and put the final answer within \\boxed{}."
_ASK_FOR_HELP = (
    "Study the problem below and write what helps your partners to solve it. Do not carry the solution out to the end "
    "and do not state the final answer."
)


def default_prompt(name: str, reads: tuple[str, ...], answers: bool) -> str:
    """
    What a role is asked that has no prompt of its own.

    Args:
        name (`str`): the role's name.
        reads (`tuple[str, ...]`): the roles that it reads.
        answers (`bool`): whether it is to state an answer.

    Returns:
        `str`: a template with `{problem}` and one `{name}` for each role read.
    """

    def title(role: str) -> str:
        return role.replace("_", " ").replace("-", " ").capitalize()

    texts = "".join(f"\n\nThe {title(read)} of your team wrote this:\n{{{read}}}" for read in reads)
    caution = "\n\nWhat they wrote may contain mistakes." if reads else ""
    if answers:
        return f"{{problem}}{texts}{caution}\n\n{_ASK_FOR_ANSWER}"
    return f"You are the {title(name)} of a team. {_ASK_FOR_HELP}\n\nProblem:\n{{problem}}{texts}{caution}"


# A sentence ends at a newline or at [.!?] followed by white space, so that "1.5" and "f(x)=x!y" stay whole.
_SENTENCE = re.compile(r"[^\n]*?(?:(?<![.!?])[.!?]+[\"')\]$]*(?=\s|$)|(?=\n)|$)[ \t]*\n*")
_ANSWER_MARK = re.compile(r"\\boxed|####")  # MATH's and GSM8K's place for the answer
_CLAUSE_START = re.compile(r"[,;:(–—]|\s(?=(?:and|then|but|so)\b)|\s(?=[A-Z])")
_PLACE = re.compile(
    r"[\s,(]*\b(?:(?:enclosed|placed|written|put)\s+)?(?:with|in|inside|within|into|using|as|after|behind)\s+"
    r"(?:(?:a|the|your)\s+)?(?:box\s+)?[\"'`(]*$",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W_]+(?:['’]s)?|[^\s.,;:!?'\"’“”()*`–—-]")
# A clause made of these words alone asks no question.
_INSTRUCTION_WORDS = frozenset(
    """
    a after all also always an and answer answers as at be before behind box boxed but by can carefully choice
    clear clearly conclude conclusion correct detail detailed do each efficiently enclose enclosed end ensure enter
    exact exactly example explain explanation express expressed final finally first following for form format from
    give given hence in include inside into is it its just last latex let let's let’s like line logically make math
    mathematical me must need notation of on one only option or out output own place placed please present problem
    provide put question reason reasoning remember report respond response result return should show simplest
    simplified single so solution solve state step steps submit sure that the their them then therefore think
    thinking this thoroughly through to up us use using when with within work working wrap wrapped write written
    you your
    """.split()
)


def _only_instructs(text: str) -> bool:
    """Whether the text is made of instruction words alone: no number, no formula, no word of a question."""
    return all(token in _INSTRUCTION_WORDS for token in _TOKEN.findall(strip_boxed(text).lower()))


def _ask_without_box(sentence: str) -> str:
    """A sentence without what it says about the answer's place; empty where it says nothing else."""
    body = sentence.rstrip()
    *_, mark = _ANSWER_MARK.finditer(body)
    end = group_end(body, mark.end()) if body.startswith("{", mark.end()) else mark.end()
    head, box, tail = body[: mark.start()], body[mark.end() + 1 : end - 1], body[end:]
    if head.endswith("$") and tail.startswith("$"):
        head, tail = head.removesuffix("$").removesuffix("$"), tail.removeprefix("$").removeprefix("$")
    cut = len(head)
    for start in reversed([0, *(match.start() for match in _CLAUSE_START.finditer(head))]):
        if not _only_instructs(head[start:cut]):
            break
        cut = start
    if _only_instructs(tail) and cut < len(head):  # the instruction is the sentence's last clause, or all of it
        if cut == 0:
            return ""
        stop = [] if re.match(r"\s[A-Z]", head[cut:]) else re.findall(r"[.?!]", tail)[-1:]
        body = head[:cut].rstrip(" ,;:(–—") + "".join(stop)
    elif cut == 0 and head and tail.startswith(":"):  # "Put the answer in \boxed{}: <question>"
        body = tail[1:].lstrip()
    elif not box.strip(" .") or "answer" in box.lower():  # "<question> in \boxed{}"; another box is the problem's own
        if place := _PLACE.search(head, max(0, len(head) - 40)):
            body = (head[: place.start()] + tail).lstrip(" ,")
    return body + sentence[len(sentence.rstrip()) :]


def _without_instruction(text: str) -> str:
    """`strip_answer_instruction`, empty where the text says nothing else."""
    if not _ANSWER_MARK.search(text):
        return text
    sentences = _SENTENCE.findall(text)
    return "".join(_ask_without_box(s) if _ANSWER_MARK.search(s) else s for s in sentences).rstrip()


def strip_answer_instruction(problem: str) -> str:
    r"""
    Remove what asks for the final answer within `\boxed{}` or after `####`: it contradicts the Thinker's instruction.

    A sentence that only instructs goes whole. One that also asks the question ("Find x and put it in \boxed{}.") loses
    its instruction alone, and a box that belongs to the problem stays.

    Args:
        problem (`str`): the problem, possibly ending in "…output the final answer within \boxed{}."

    Returns:
        `str`: the problem without the instruction; the problem itself where it has none, or says nothing else.
    """
    return _without_instruction(problem) or problem


def _last_user(prompt: list[dict]) -> int:
    """Index of the last user message, which states the problem."""
    for i in reversed(range(len(prompt))):
        if prompt[i].get("role") == "user":
            if isinstance(prompt[i].get("content"), str):
                return i
            break
    raise ValueError(
        f"`prompt` has no user message whose content is a text: {prompt!r}. Give each row a text, or chat "
        "messages in which the last user message states the problem."
    )


def problem_text(prompt: str | list[dict]) -> str:
    """The problem that a prompt states: the text itself, or the content of the last user message."""
    return prompt if isinstance(prompt, str) else prompt[_last_user(prompt)]["content"]


def whole_characters(text: str) -> str:
    """A text that can be encoded: surrogates without their other half, as JSON may hold, are replaced."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def fill(template: str, /, **fields: str) -> str:
    """Put the fields into a template, in one pass, so that braces and field names inside the texts stay."""
    return re.sub("|".join(re.escape(f"{{{name}}}") for name in fields), lambda m: fields[m.group()[1:-1]], template)


def build_messages(template: str, prompt: str | list[dict], /, **fields: str) -> str | list[dict]:
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
    last = _last_user(prompt)
    return [*prompt[:last], {**prompt[last], "content": text}, *prompt[last + 1 :]]


_WITHOUT_ANSWER = {"system": _without_instruction, "user": strip_answer_instruction, "assistant": strip_boxed}


def build_thinker_messages(
    prompt: str | list[dict], template: str = THINKER_PROMPT, /, **fields: str
) -> str | list[dict]:
    """
    The Thinker's prompt: the problem without the sentence that asks for a boxed answer. A system message loses that
    sentence too, and goes where it says nothing else. Earlier turns of a conversation are examples: what a user asks
    loses the sentence, what an assistant answers its answer's place; an answer that says nothing else goes with its
    question. So is the prompt of every role that is not to state an answer; `fields` are the texts that it reads.
    """
    messages = build_messages(template, prompt, problem=strip_answer_instruction(problem_text(prompt)), **fields)
    if isinstance(messages, str):
        return messages
    kept, last = [], _last_user(prompt)
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if i == last or not isinstance(content, str) or role not in ("system", "user", "assistant"):
            kept.append(message)
            continue
        text = _WITHOUT_ANSWER[role](content)
        if text.strip() or text == content:
            kept.append({**message, "content": text})
        elif role == "assistant" and kept and kept[-1].get("role") == "user" and i < last:
            kept.pop()
    return kept


def build_solver_messages(
    prompt: str | list[dict],
    thought: str,
    template: str = SOLVER_PROMPT,
    reader: AnswerReader = DEFAULT_READER,
) -> str | list[dict]:
    """The Solver's prompt: the problem and the thought, which passes the leak guard, the `reader`'s, here."""
    return build_messages(template, prompt, thought=reader.strip(thought))


def build_solo_messages(prompt: str | list[dict], template: str = SOLO_PROMPT) -> str | list[dict]:
    """The counterfactual prompt: the same Solver reads the problem alone."""
    return build_messages(template, prompt)
