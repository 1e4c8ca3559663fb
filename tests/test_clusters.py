"""Clusters of voters' answers: by hand, by a slow loop, by what is asked, with the real verifier."""

import itertools
import random

import pytest
import torch

from ccpo import MathVerifier
from ccpo.credit import vote_outcome
from ccpo.verifier import cluster_answers, plurality


class Relation:
    """An outcome whose texts are answers, `-` none; equality is what the pairs say, in that direction only."""

    def __init__(self, *pairs):
        self.pairs, self.asked, self.read = {tuple(pair) for pair in pairs}, [], []

    def __call__(self, completions, **kwargs):
        return [1.0] * len(completions)

    def extract(self, text):
        self.read.append(text)
        return None if text == "-" else text

    def equal(self, first, second):
        self.asked.append((first, second))
        return (first, second) in self.pairs


class ManyAtOnce(Relation):
    """The same with a method for many pairs."""

    def __init__(self, *pairs):
        super().__init__(*pairs)
        self.calls = 0

    def equal_pairs(self, pairs):
        self.calls += bool(pairs)
        return [super(ManyAtOnce, self).equal(*pair) for pair in pairs]


class Asynchronous(Relation):
    """The same, whose methods are to be awaited."""

    async def extract(self, text):
        return super().extract(text)

    async def equal(self, first, second):
        return super().equal(first, second)


both = pytest.mark.parametrize("kind", [Relation, ManyAtOnce])
all_kinds = pytest.mark.parametrize("kind", [Relation, ManyAtOnce, Asynchronous])


def clusters(words, outcome):
    return cluster_answers([list(word) for word in words], outcome).tolist()


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(num_workers=1)


# ---- By hand ----


@all_kinds
def test_clusters_by_hand(kind):
    # a = b; abc: a and b one cluster, c another. Numbers in order of first appearance, silence is -1.
    outcome = kind("ab")
    assert clusters(["abc", "cab", "-ba", "c-c", "---", "ccc"], outcome) == [
        [0, 0, 1],
        [0, 1, 1],
        [-1, 0, 0],
        [0, -1, 0],
        [-1, -1, -1],
        [0, 0, 0],
    ]


@both
def test_the_verifier_need_say_so_in_one_direction_only(kind):
    assert clusters(["ab", "ba"], kind("ab")) == clusters(["ab", "ba"], kind("ba")) == [[0, 0], [0, 0]]


@both
def test_components_of_a_relation_that_is_not_transitive(kind):
    # a = b and b = c, a ≠ c: one cluster where b is there, two where it is not. Whoever stands first.
    outcome = kind("ab", "bc")
    assert clusters(["abc", "acb", "cab"], outcome) == [[0, 0, 0]] * 3
    assert clusters(["ac-", "acd", "dbc"], outcome) == [[0, 1, -1], [0, 1, 2], [0, 1, 1]]


@both
def test_a_late_answer_can_join_two_clusters(kind):
    # c = a and c = b join what stood apart; the number is that of the first.
    assert clusters(["dabc"], kind("ca", "bc")) == [[0, 1, 1, 1]]
    assert clusters(["abdc"], kind("ca", "bc")) == [[0, 0, 1, 0]]


def test_the_vote_of_a_non_transitive_relation():
    """Three that hang together outvote two: the outcome is the mean of the three."""
    found = cluster_answers([list("abcdd")], Relation("ab", "bc"))
    own = torch.tensor([[[1.0, 1.0, -1.0, -1.0, -1.0]]])
    torch.testing.assert_close(vote_outcome(own, found.unsqueeze(0)), torch.tensor([[1 / 3]]))


def test_shape_and_type():
    found = cluster_answers([["a", "b"], ["b", "b"], ["-", "a"]], Relation())
    assert found.dtype == torch.int64 and found.shape == (3, 2)
    assert cluster_answers([], Relation()).shape == (0, 0)
    assert cluster_answers([[], []], Relation()).shape == (2, 0)
    assert clusters(["a", "-"], Relation()) == [[0], [-1]]


# ---- Another way ----


def slow_clusters(answers, pairs):
    """Spread each voter's number over all that are linked to it, by every walk of any length."""
    linked = [
        [a is not None and b is not None and (a == b or (a, b) in pairs or (b, a) in pairs) for b in answers]
        for a in answers
    ]
    for _ in answers:
        linked = [[any(linked[i][k] and linked[k][j] for k in range(len(answers))) for j in range(len(answers))]
                  for i in range(len(answers))]  # fmt: skip
    numbers = {}
    return [-1 if a is None else numbers.setdefault(tuple(linked[i]), len(numbers)) for i, a in enumerate(answers)]


@both
@pytest.mark.parametrize("voters", [1, 2, 3, 5, 7])
def test_clusters_against_walks(kind, voters):
    for seed in range(10):
        rng = random.Random(seed)
        pairs = {pair for pair in itertools.permutations("abcdefg", 2) if rng.random() < 0.12}
        words = ["".join(rng.choice("abcdefg-") for _ in range(voters)) for _ in range(12)]
        expected = [slow_clusters([None if x == "-" else x for x in word], pairs) for word in words]
        assert clusters(words, kind(*pairs)) == expected


@both
def test_order_of_rows_and_names_of_voters(kind):
    rng = random.Random(1)
    pairs = {pair for pair in itertools.permutations("abcdef", 2) if rng.random() < 0.15}
    words = ["".join(rng.choice("abcdef-") for _ in range(5)) for _ in range(20)]
    found = clusters(words, kind(*pairs))
    assert clusters(words[::-1], kind(*pairs)) == found[::-1]
    order = [3, 0, 4, 2, 1]
    for word, row in zip(words, found, strict=True):
        moved = clusters(["".join(word[i] for i in order)], kind(*pairs))[0]
        together = [[row[i] == row[j] for j in order] for i in order]  # numbers may change, who is together may not
        assert [[a == b for b in moved] for a in moved] == together
        assert max(row) + 1 == len(set(row) - {-1})  # 0, 1, 2 … without a gap


# ---- What is asked ----


@both
def test_pairs_are_asked_once_and_only_where_they_matter(kind):
    # Four rows of the same two answers: one pair, both directions, since they differ.
    outcome = kind()
    clusters(["ab", "ba", "ab", "ba"], outcome)
    assert sorted(outcome.asked) == [("a", "b"), ("b", "a")]
    # Equal in the first direction: the second is not asked. Equal strings are not asked of.
    outcome = kind("ab")
    clusters(["ab", "ab", "aa"], outcome)
    assert outcome.asked == [("a", "b")]
    # a = b and a = c: b and c hang together already.
    outcome = kind("ab", "ac")
    clusters(["abc"], outcome)
    assert outcome.asked == [("a", "b"), ("a", "c")]
    # Nothing is asked across rows.
    outcome = kind()
    clusters(["aa", "bb", "c-"], outcome)
    assert outcome.asked == []


@both
def test_no_text_is_read_twice(kind):
    outcome = kind()
    clusters(["aba", "bab", "--c"], outcome)
    assert sorted(outcome.read) == ["-", "a", "b", "c"]


@both
def test_no_question_is_asked_twice(kind):
    rng = random.Random(2)
    pairs = {pair for pair in itertools.permutations("abcdefgh", 2) if rng.random() < 0.1}
    outcome = kind(*pairs)
    clusters(["".join(rng.choice("abcdefgh-") for _ in range(6)) for _ in range(50)], outcome)
    assert len(outcome.asked) == len(set(outcome.asked))
    for first, second in outcome.asked:
        assert (second, first) not in outcome.asked or (first, second) not in pairs or (second, first) not in pairs


def test_all_rows_go_out_together():
    """Three voters have three pairs, each in two directions: six calls, however many rows there are."""
    outcome = ManyAtOnce()
    found = cluster_answers([[f"{row}a", f"{row}b", f"{row}c"] for row in range(40)], outcome)
    assert found.tolist() == [[0, 1, 2]] * 40
    assert outcome.calls == 6 and len(outcome.asked) == 240


# ---- With the verifier ----


def test_clusters_of_the_math_verifier(verifier):
    texts = [
        [r"So \boxed{\frac{1}{2}}.", "Answer: 0.5", "#### 2"],  # two spellings of one half
        [r"\boxed{2}", "I do not know.", r"\boxed{2.0}"],  # one is silent
        [r"\boxed{(1, 2)}", r"\boxed{(2, 1)}", r"\boxed{x^2+1}"],
        ["I do not know.", "", r"The box is \boxed{}."],
        [r"\boxed{1+x^2}", r"\boxed{x^2 + 1}", r"\boxed{x^2 - 1}"],
    ]
    expected = [[0, 0, 1], [0, -1, 0], [0, 1, 2], [-1, -1, -1], [0, 0, 1]]
    assert cluster_answers(texts, verifier).tolist() == expected
    assert [cluster_answers([row], verifier).tolist()[0] for row in texts] == expected


def test_equal_pairs_is_equal_of_each(verifier):
    pairs = [("0.5", r"\frac12"), ("5", "6"), ("x +", "x +"), ("2, 3", "3, 2"), ("0.5", r"\frac12")]
    assert verifier.equal_pairs(pairs) == [verifier.equal(*pair) for pair in pairs] == [True, False, False, True, True]
    assert verifier.equal_pairs([]) == []


# ---- The text that is shown ----


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ([0, 1, 1], 1),  # the earliest of the two
        ([0, 1, 0], 0),
        ([0, 1, 2], 0),  # a tie: the first
        ([-1, 0, 1], 1),  # a tie of those who answer
        ([0, 1, 1, 0], 0),
        ([5, 2, 2, 5, 5, -1], 0),
        ([-1, -1, 7], 2),
        ([-1, -1, -1], 0),  # nobody answers: the first voter
        ([0], 0),
    ],
)
def test_plurality_by_hand(row, shown):
    assert plurality([["text"] * len(row)], torch.tensor([row])) == [shown]


def test_plurality_against_a_loop():
    rng = torch.Generator().manual_seed(3)
    found = torch.randint(-1, 4, (200, 6), generator=rng)
    expected = []
    for row in found.tolist():
        best = max((row.count(c) for c in row if c >= 0), default=0)
        expected.append(next((i for i, c in enumerate(row) if c >= 0 and row.count(c) == best), 0))
    assert plurality([["text"] * 6] * 200, found) == expected
    renamed = torch.where(found >= 0, 9 - found, -1)  # names of clusters mean nothing
    assert plurality([["text"] * 6] * 200, renamed) == expected
    assert plurality([], torch.zeros(0, 0, dtype=torch.int64)) == []


# ---- Errors ----


class Silent:
    """A reward function that finds no answers."""

    __name__ = "silent"

    def __call__(self, completions, **kwargs):
        return [1.0] * len(completions)


def test_errors():
    with pytest.raises(ValueError, match="'silent' has no `extract` and no `equal`. Use MathVerifier"):
        cluster_answers([["a"]], Silent())
    halfway = Silent()
    halfway.extract = lambda text: text
    with pytest.raises(ValueError, match="'silent' has no `equal`. Use MathVerifier"):
        cluster_answers([["a"]], halfway)
    with pytest.raises(ValueError, match="the same number of voters in each row, got 2 in row 0 and 1 in row 1"):
        cluster_answers([["a", "b"], ["a"]], Relation())
    with pytest.raises(
        ValueError, match=r"row for each row of `own_texts`.* the shape \(1, 3\), and `own_texts` has 1 rows of \[2\]"
    ):
        plurality([["a", "b"]], torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="at least one voter"):
        plurality([[]], torch.zeros(1, 0, dtype=torch.int64))
