"""
[`MathVerifier`] decides whether an answer is right.

It calls the library math-verify in worker processes, with a time limit for each pair of answers.
"""

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
    Scores answers to problems whose answer is known. It is also a TRL reward function named `math_verifier`.

    It compares a *prediction*, which a model wrote, with the *gold* answer, which is known to be right. The score is
    +1.0 if math-verify finds them equal. It is -1.0 if they are not equal, if the prediction has no readable answer,
    or if the comparison takes too long. It is NaN if the gold answer cannot be read, because nothing is known then.

    - A gold answer may be bare (`72`, `1,200`, `\frac{1}{2}`, `\text{Evelyn}`, `$x$`). It may be a GSM8K solution, of
      which the part after the last `####` counts. Or it may be a solution with boxes, of which the last one counts, or
      the last ones if together they form one answer.
    - In a prediction the last closed `\boxed{}` counts, or the last ones if together they form one answer. If there is
      no box, the last phrase that states an answer counts (`#### 34`, `Answer: 34`, "the answer is 34",
      `<answer>34</answer>`). If there is no such phrase either, the whole text counts, provided that it is a bare
      answer. See [`~ccpo.team.answers.AnswerReader`].
    - Only the last 100,000 characters of a text are read. An answer of more than 2,000 characters is unreadable.

    Child processes judge the pairs. One that takes too long or dies is replaced. Therefore this works on any thread,
    in daemonic data workers and after a fork. No text is ever evaluated as code. Equal pairs of a call are judged only
    once, and two plain integers are compared without a child process. Calls from several threads take turns.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            The time limit for a pair, in seconds. Half of it may be spent on reading the gold answer.
        num_workers (`int`, *optional*):
            How many child processes to use. They start when they are first needed. Defaults to the number of CPUs
            divided by the processes of the launcher on this machine (`LOCAL_WORLD_SIZE`), at most 8.
        answer_pattern (`str`, *optional*):
            A regular expression that finds the answer, with one group, such as `"RESULT = (.+)"`. Set it if your own
            prompt asks for the answer in another form. It replaces the phrases above and takes precedence over boxes.

    Attributes:
        reader ([`~ccpo.team.answers.AnswerReader`]): Finds the answer in a text. The leak guard uses it, too.

    Raises:
        `ValueError`: If an argument is out of range, or if `answer_pattern` is not such an expression.
        `RuntimeError`: If the system is not POSIX (Linux or macOS).

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

    def __getstate__(self):  # the workers are not pickled
        return {"timeout": self.timeout, "num_workers": self.num_workers, "answer_pattern": self.reader.pattern}

    def __setstate__(self, state):
        self.__init__(**state)

    def score(self, *, gold: Sequence[str | None], prediction: Sequence[str]) -> list[float]:
        """
        Compare predictions with gold answers.

        Args:
            gold (`Sequence[str]`):
                The gold answers, as a list or a column of a dataset. `None` stands for a missing one and gives NaN.
            prediction (`Sequence[str]`):
                What the model wrote for each of them.

        Returns:
            `list[float]`: For each pair +1.0 (right), -1.0 (wrong) or NaN (the gold answer cannot be read).

        Raises:
            `ValueError`: If an argument is not a list of texts, or if the lengths differ.
            `RuntimeError`: If no child process can be started.
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
        """Score pairs `(gold, answer)`, of which each may be `None` if it is missing."""
        results, jobs = [], {}  # a result is a score, or the job that will compute it
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
        """The answer in a prediction, as it is written there, or `None` if there is none."""
        return self.reader.extract(text)

    def equal(self, first: str, second: str) -> bool:
        """
        Whether two answers, as [`extract`] returns them, are the same.

        The first one is taken as the gold answer, so the result may change if the two are exchanged. It is `False` if
        one of them cannot be read or if the comparison takes too long.
        """
        return self.equal_pairs([(first, second)])[0]

    def equal_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """[`equal`] for many pairs at once. All child processes share the work."""
        return [score == 1.0 for score in self._judge(pairs)]

    def __call__(self, prompts=None, completions=None, solution=None, **kwargs) -> list[float]:
        """
        Score completions (texts or messages) against the dataset's column `solution`, as a TRL reward function.

        Raises:
            `ValueError`: If there is no such column.
        """
        if completions is None or solution is None:
            missing = "completions" if completions is None else "solution"
            raise ValueError(f"math_verifier got no `{missing}`. Put the gold answers into a column named `solution`.")
        return self.score(gold=solution, prediction=[completion_text(completion) for completion in completions])
