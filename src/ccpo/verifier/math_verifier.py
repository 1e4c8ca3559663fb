"""Whether an answer is right: math-verify behind one call, bounded in time, in worker processes of its own."""

import json
import math
import os
import weakref
from collections.abc import Sequence

from ..team.answers import AnswerReader, check_pattern, gold_answer, plain_integer
from ..team.completions import completion_text
from .pool import Job, Pool

MAX_WORKERS = 8


def _texts(name, texts, kinds):
    """The texts as a list, or an error that names the argument."""
    if isinstance(texts, (str, bytes, dict)) or not (hasattr(texts, "__len__") and hasattr(texts, "__getitem__")):
        raise ValueError(f"{name} must be a list of strings, got {type(texts).__name__} {texts!r:.80}.")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, kinds):
            raise ValueError(f"{name} must be a list of strings, got {type(text).__name__} {text!r:.80}.")
    return texts


def _default_num_workers():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class MathVerifier:
    r"""
    Scores answers to problems with a known answer, and is itself a TRL reward function named `math_verifier`.

    A pair is +1.0 if math-verify finds the prediction equal to the gold answer; -1.0 if not, or if the prediction has
    no readable answer or takes too long; NaN if the gold answer cannot be read: what is unknown is not scored.

    - *Gold* answers are bare (`72`, `1,200`, `\frac{1}{2}`, `\text{Evelyn}`, `$x$`), GSM8K solutions (what follows the
      closing `####` counts) or solutions with boxes (the last one counts, or the last that form one answer).
    - Of a *prediction* the last `\boxed{}` that closes counts, or the last boxes that form one answer; else the
      last phrase that states an answer (`#### 34`, `Answer: 34`, "the answer is 34", `<answer>34</answer>`); else the
      whole text if it is a bare answer itself. See [`~ccpo.team.answers.AnswerReader`].
    - Of long texts the last 100,000 characters are read. An answer of more than 2,000 is unreadable.

    Pairs are judged in child interpreters that know math-verify only; one that takes too long, or dies, is replaced.
    Hence this works on any thread, in daemonic data workers and after a fork, and no text is ever evaluated as code.
    Equal pairs of a call are judged once, two plain integers right here, and calls from several threads take turns.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds for a pair, of which reading the gold answer may take half.
        num_workers (`int`, *optional*):
            Worker processes, started when first needed. Defaults to the CPUs available per process of the launcher
            (`LOCAL_WORLD_SIZE`), at most 8.
        answer_pattern (`str`, *optional*):
            Where a prompt of your own asks for the answer: a regular expression whose one group is the answer, such as
            `"RESULT = (.+)"`. It is read instead of the built-in phrases, before any box.

    Attributes:
        reader ([`~ccpo.team.answers.AnswerReader`]): finds the answer's place; the leak guard uses it too.

    Example:
        ```python
        >>> MathVerifier().score(gold=["72", r"\frac{1}{2}", "x +"], prediction=[r"so \boxed{72}", "0.4", "1"])
        [1.0, -1.0, nan]
        ```
    """

    __name__ = "math_verifier"

    def __init__(self, timeout: float = 5.0, num_workers: int | None = None, answer_pattern: str | None = None):
        if os.name != "posix":
            raise RuntimeError(
                "MathVerifier needs a POSIX system (Linux or macOS), because it uses timers, pipes and forks. "
                f"This one is {os.name!r}."
            )
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}.")
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, or None for the default, got {num_workers}.")
        if answer_pattern is not None:
            check_pattern("answer_pattern", answer_pattern)
        self.timeout = timeout
        self.num_workers = num_workers
        self.reader = AnswerReader(answer_pattern)
        self._pool = Pool(timeout, num_workers or _default_num_workers())
        weakref.finalize(self, self._pool.close)

    def __getstate__(self):  # without the workers
        return {"timeout": self.timeout, "num_workers": self.num_workers, "answer_pattern": self.reader.pattern}

    def __setstate__(self, state):
        self.__init__(**state)

    def score(self, *, gold: Sequence[str | None], prediction: Sequence[str]) -> list[float]:
        """
        Scores predictions against gold answers.

        Args:
            gold (`Sequence[str]`):
                Gold answers, a list or a column of a dataset; `None` stands for a missing one and gives NaN.
            prediction (`Sequence[str]`):
                What the model wrote, as many.

        Returns:
            `list[float]`: +1.0, -1.0 or NaN each. Raises a `RuntimeError` if no worker can be started.
        """
        gold = _texts("gold", gold, (str, type(None)))
        prediction = _texts("prediction", prediction, str)
        if len(gold) != len(prediction):
            raise ValueError(
                f"gold and prediction must have the same length, got {len(gold)} and {len(prediction)} texts."
            )
        references = {text: gold_answer(text) for text in set(gold) if text is not None}
        pairs = []
        for gold_text, text in zip(gold, prediction, strict=True):
            reference = references.get(gold_text)
            is_gold = self.reader.pattern is None and gold_text is not None and text.strip() == gold_text.strip()
            pairs.append((reference, reference if is_gold else self.reader.extract(text)))
        return self._judge(pairs)

    def _judge(self, pairs):
        """Scores pairs of answers, `(gold, answer)`; `None` stands for a missing one."""
        results, jobs = [], {}  # a result is a score, or the job that will have it
        for gold, answer in pairs:
            if gold is None:
                results.append(math.nan)
                continue
            integers = plain_integer(gold), plain_integer(answer)
            if None not in integers:
                results.append(1.0 if integers[0] == integers[1] else -1.0)
                continue
            if (gold, answer) not in jobs:
                jobs[gold, answer] = Job(json.dumps([gold, answer or ""]).encode() + b"\n")
            results.append(jobs[gold, answer])
        if jobs:
            self._pool.run(list(jobs.values()))
        return [result.score if isinstance(result, Job) else result for result in results]

    def extract(self, text: str) -> str | None:
        """The answer that a prediction gives, as it stands there; `None` where the text gives none."""
        return self.reader.extract(text)

    def equal(self, first: str, second: str) -> bool:
        """
        Whether two answers, as [`extract`] gives them, are the same. Not symmetric in everything (the first is taken
        as the gold answer): ask both ways for either. `False` where one of them cannot be read or takes too long.
        """
        return self.equal_pairs([(first, second)])[0]

    def equal_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """[`equal`] of many pairs at once, which all the workers share."""
        return [score == 1.0 for score in self._judge(pairs)]

    def __call__(self, prompts=None, completions=None, solution=None, **kwargs) -> list[float]:
        """TRL's reward function signature: scores the completions (text or messages) against the column `solution`."""
        if completions is None or solution is None:
            missing = "completions" if completions is None else "solution"
            raise ValueError(f"math_verifier got no `{missing}`. Put the gold answers into a column named `solution`.")
        return self.score(gold=solution, prediction=[completion_text(completion) for completion in completions])
