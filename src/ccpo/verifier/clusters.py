"""Which voters gave equal answers, and which of them a user is shown."""

from collections.abc import Callable, Generator, Sequence

import torch

from ..calls import call


def cluster_answers(texts: Sequence[Sequence[str]], outcome: Callable) -> torch.Tensor:
    """
    Clusters of the voters' answers, episode by episode.

    Two answers are equal if they are the same string, or if the verifier says so in either direction. Clusters are the
    connected components: where a = b and b = c, the three are one, whatever the verifier says of a and c. An answer
    is compared within its episode only.

    Every pair of strings is asked of at most once in a call, and only where both are in an episode whose clusters
    still depend on it. The second direction is asked where the first says no.

    Args:
        texts (`list[list[str]]` of shape (rows, voters)):
            What the voters of each episode wrote.
        outcome (`Callable`):
            The verifier, with `extract(text) -> str | None`, the answer in a text, and `equal(a, b) -> bool`, whether
            two answers are the same. If it has `equal_pairs(pairs) -> list[bool]`, as [`MathVerifier`] has, all
            episodes' pairs are asked together. The methods may be asynchronous.

    Returns:
        `torch.Tensor` of int64 of shape `(rows, voters)`: the number of the answer's cluster, in the order in which
        clusters first appear in the episode, 0 first. -1 where a text has no answer that can be read.

    Raises:
        `ValueError`: an outcome without the two methods, or episodes of different numbers of voters.
    """
    check_equality(outcome)
    voters = len(texts[0]) if len(texts) else 0
    for row, episode in enumerate(texts):
        if len(episode) != voters:
            raise ValueError(
                f"`texts` must have the same number of voters in each row, got {voters} in row 0 and "
                f"{len(episode)} in row {row}."
            )
    found = {
        text: call(outcome.extract, text) for text in dict.fromkeys(text for episode in texts for text in episode)
    }
    answers = [[found[text] for text in episode] for episode in texts]
    verdicts: dict[frozenset[str], bool] = {}
    clusterings = [_cluster(episode) for episode in answers]
    clusters: list[list[int]] = [[] for _ in answers]
    replies: dict[int, bool | None] = dict.fromkeys(range(len(answers)))  # episodes under way -> what they wait for
    while replies:
        questions = {}
        for row, reply in replies.items():
            try:
                questions[row] = clusterings[row].send(reply)
                while frozenset(questions[row]) in verdicts:
                    questions[row] = clusterings[row].send(verdicts[frozenset(questions[row])])
            except StopIteration as done:
                questions.pop(row, None)
                clusters[row] = done.value
        verdicts |= _ask(outcome, {frozenset(pair): pair for pair in questions.values()})
        replies = {row: verdicts[frozenset(pair)] for row, pair in questions.items()}
    return torch.tensor(clusters, dtype=torch.int64).reshape(len(texts), voters)


def check_equality(outcome: Callable) -> None:
    """Raise a `ValueError` unless an outcome function can find answers and compare them, which a vote needs."""
    missing = [name for name in ("extract", "equal") if not callable(getattr(outcome, name, None))]
    if missing:
        named = getattr(outcome, "__name__", type(outcome).__name__)
        raise ValueError(
            "`outcome` of a vote must have `extract(text) -> str | None` and `equal(a, b) -> bool`, but "
            f"{named!r} has no {' and no '.join(f'`{name}`' for name in missing)}. Use MathVerifier(), or "
            "add the methods."
        )


def _cluster(answers: Sequence[str | None]) -> Generator[tuple[str, str], bool, list[int]]:
    """Clusters of one episode: yields the pairs that it must know of, and is sent whether they are equal."""
    component = {answer: answer for answer in dict.fromkeys(answers) if answer is not None}  # answer -> its first one
    distinct = list(component)
    for j, second in enumerate(distinct):
        for first in distinct[:j]:
            old, new = component[second], component[first]
            if old != new and (yield first, second):
                component |= {answer: new for answer in distinct if component[answer] == old}
    number = {first: i for i, first in enumerate(dict.fromkeys(component.values()))}
    return [-1 if answer is None else number[component[answer]] for answer in answers]


def _ask(outcome: Callable, pairs: dict[frozenset[str], tuple[str, str]]) -> dict[frozenset[str], bool]:
    """Whether the answers of each pair are equal in either direction."""

    def ask(asked: list[tuple[str, str]]) -> list[bool]:
        if hasattr(outcome, "equal_pairs"):
            return call(outcome.equal_pairs, asked)
        return [call(outcome.equal, a, b) for a, b in asked]

    verdicts = dict(zip(pairs, map(bool, ask(list(pairs.values()))), strict=True))
    apart = [key for key, equal in verdicts.items() if not equal]
    return verdicts | dict(zip(apart, map(bool, ask([pairs[key][::-1] for key in apart])), strict=True))


def plurality(own_texts: Sequence[Sequence[str]], clusters: torch.Tensor) -> list[int]:
    """
    The voter whose text a user is shown: the earliest member of the plurality.

    Of largest clusters that tie, the one that appears first counts. Where nobody answers, it is the first voter.

    Args:
        own_texts (`list[list[str]]` of shape (rows, voters)): what the voters wrote.
        clusters (`torch.Tensor` of integers of shape `(rows, voters)`): [`cluster_answers`], -1 without an answer.

    Returns:
        `list[int]`: for each row the index of a voter.

    Raises:
        `ValueError`: texts and clusters of different shapes, or no voter.
    """
    if clusters.ndim != 2 or [len(row) for row in own_texts] != [clusters.shape[1]] * len(clusters):
        raise ValueError(
            "`clusters` must have a row for each row of `own_texts` and one number for each voter in it. It "
            f"has the shape {tuple(clusters.shape)}, and `own_texts` has {len(own_texts)} rows of "
            f"{sorted({len(row) for row in own_texts})} texts."
        )
    if len(clusters) and clusters.shape[1] == 0:
        raise ValueError("`own_texts` must have at least one voter in each row, got none.")
    shown = []
    for row in clusters.tolist():
        sizes = {cluster: row.count(cluster) for cluster in row if cluster >= 0}
        shown.append(row.index(max(sizes, key=sizes.get)) if sizes else 0)  # of equal sizes the first that appears
    return shown
