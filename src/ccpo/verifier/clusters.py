"""Find which voters gave equal answers, and whose text is shown to a user."""

from collections.abc import Callable, Generator, Sequence

import torch

from ..calls import call


def cluster_answers(texts: Sequence[Sequence[str]], outcome: Callable) -> torch.Tensor:
    """
    Group the voters' answers of each episode into clusters of equal answers.

    An episode is one vote on one problem. Two answers are equal if they are the same string, or if the verifier says
    so in one of the two directions. If a = b and b = c, all three are in one cluster, even if the verifier finds that
    a and c differ. Only answers of the same episode are compared.

    The verifier is asked about a pair of strings at most once, and only if the clusters of an episode depend on it. It
    is asked in the second direction only if the first one gives no.

    Args:
        texts (`list[list[str]]` of shape (rows, voters)):
            What the voters wrote, one row for each episode.
        outcome (`Callable`):
            The verifier. It must have the methods `extract(text) -> str | None`, which finds the answer in a text, and
            `equal(a, b) -> bool`, which compares two answers. If it also has `equal_pairs(pairs) -> list[bool]`, as
            [`MathVerifier`] has, the pairs of all episodes are compared together. The methods may be asynchronous.

    Returns:
        `torch.Tensor` of int64 of shape `(rows, voters)`: the number of each answer's cluster. In each row the numbers
        start at 0, in the order in which clusters first appear. -1 if a text has no readable answer.

    Raises:
        `ValueError`: If `outcome` lacks one of the two methods, or if rows have different numbers of voters.
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
    replies: dict[int, bool | None] = dict.fromkeys(range(len(answers)))  # unfinished episode -> its next reply
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
    """Raise a `ValueError` if an outcome function cannot find and compare answers, which a vote needs."""
    missing = [name for name in ("extract", "equal") if not callable(getattr(outcome, name, None))]
    if missing:
        named = getattr(outcome, "__name__", type(outcome).__name__)
        raise ValueError(
            "`outcome` of a vote must have `extract(text) -> str | None` and `equal(a, b) -> bool`, but "
            f"{named!r} has no {' and no '.join(f'`{name}`' for name in missing)}. Use MathVerifier(), or "
            "add the methods."
        )


def _cluster(answers: Sequence[str | None]) -> Generator[tuple[str, str], bool, list[int]]:
    """Find the clusters of one episode. Yields each pair that must be compared; send whether the two are equal."""
    # Maps each answer to the first answer of its cluster
    component = {answer: answer for answer in dict.fromkeys(answers) if answer is not None}
    distinct = list(component)
    for j, second in enumerate(distinct):
        for first in distinct[:j]:
            old, new = component[second], component[first]
            if old != new and (yield first, second):
                component |= {answer: new for answer in distinct if component[answer] == old}
    number = {first: i for i, first in enumerate(dict.fromkeys(component.values()))}
    return [-1 if answer is None else number[component[answer]] for answer in answers]


def _ask(outcome: Callable, pairs: dict[frozenset[str], tuple[str, str]]) -> dict[frozenset[str], bool]:
    """Whether the answers of each pair are equal in one of the two directions."""

    def ask(asked: list[tuple[str, str]]) -> list[bool]:
        if hasattr(outcome, "equal_pairs"):
            return call(outcome.equal_pairs, asked)
        return [call(outcome.equal, a, b) for a, b in asked]

    verdicts = dict(zip(pairs, map(bool, ask(list(pairs.values()))), strict=True))
    apart = [key for key, equal in verdicts.items() if not equal]
    return verdicts | dict(zip(apart, map(bool, ask([pairs[key][::-1] for key in apart])), strict=True))


def plurality(own_texts: Sequence[Sequence[str]], clusters: torch.Tensor) -> list[int]:
    """
    Choose the voter whose text is shown to a user: the first member of the largest cluster.

    If several clusters are largest, the one that appears first counts. If nobody answers, it is the first voter.

    Args:
        own_texts (`list[list[str]]` of shape (rows, voters)): What the voters wrote.
        clusters (`torch.Tensor` of integers of shape `(rows, voters)`):
            The clusters of their answers, from [`cluster_answers`]. -1 if a text has no answer.

    Returns:
        `list[int]`: For each row the index of a voter.

    Raises:
        `ValueError`: If the shapes of texts and clusters differ, or if there is no voter.
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
        shown.append(row.index(max(sizes, key=sizes.get)) if sizes else 0)  # `max` takes the first of equal sizes
    return shown
