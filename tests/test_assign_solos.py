"""Which rows answer without a role, wherever a group's rows lie."""

import itertools
from collections import Counter

import pytest

from ccpo.team.rollout import assign_solos


def split_batches():
    """Every (rows, processes, group, S) with whole groups, though a group may be split over processes."""
    for rows, processes, group in itertools.product(range(1, 13), range(1, 7), range(1, 13)):
        if rows * processes % group == 0:
            for solos in {1, 2, max(1, group // 2), max(1, group - 1), group, group + 1, 2 * group, 3 * group + 2}:
                yield rows, processes, group, solos


def test_every_prompt_gets_its_solos_wherever_its_rows_are():
    combinations = list(split_batches())
    assert len(combinations) > 1000
    assert any(rows % group and group % rows for rows, _, group, _ in combinations)  # groups across a boundary
    for rows, processes, group, solos in combinations:
        local, valid = assign_solos(rows, processes, group, solos)
        case = (rows, processes, group, solos)
        assert len(local) == processes, case
        size = len(local[0])
        assert size >= 1 and all(len(own) == size for own in local), case
        assert len(valid) == processes * size, case
        assert all(0 <= row < rows for own in local for row in own), case
        answered = [
            (rank * rows + row) // group
            for (rank, row), counts in zip(
                ((rank, row) for rank, own in enumerate(local) for row in own), valid, strict=True
            )
            if counts
        ]
        assert answered == sorted(answered), case
        assert Counter(answered) == dict.fromkeys(range(rows * processes // group), solos), case


def test_no_process_has_more_solos_than_the_busiest_one_needs():
    for rows, processes, group, solos in split_batches():
        local, valid = assign_solos(rows, processes, group, solos)
        size = len(local[0])
        assert any(all(valid[rank * size : (rank + 1) * size]) for rank in range(processes))


def test_as_many_solos_as_rows_is_a_solo_for_each_row():
    for rows, processes, group, _ in split_batches():
        local, valid = assign_solos(rows, processes, group, group)
        assert local == [list(range(rows))] * processes
        assert all(valid)


def test_solos_by_hand():
    # W = 2 processes of 3 rows, G = 3, S = 1: the last row of each group answers, one per process.
    assert assign_solos(3, 2, 3, 1) == ([[2], [2]], [True, True])
    # G = 2 over rows 0 1 | 2 3 | 4 5 of processes (0 1 2) and (3 4 5), S = 1: rows 1 | 3 | 5, that is [1] and [0, 2].
    # The first process answers once more, which does not count.
    assert assign_solos(3, 2, 2, 1) == ([[1, 0], [0, 2]], [True, False, True, True])
    # One prompt on two processes, S = 1: its last row answers, and the first process runs along.
    assert assign_solos(2, 2, 4, 1) == ([[0], [1]], [False, True])
    # S = 3 of G = 2: rows 0 and 1 answer once and twice.
    assert assign_solos(2, 1, 2, 3) == ([[0, 1, 1]], [True] * 3)
    # None: a process still runs along, since sharded generation is a collective.
    assert assign_solos(2, 2, 2, 0) == ([[0], [0]], [False, False])


@pytest.mark.parametrize(("rows", "processes", "group"), [(3, 1, 2), (3, 2, 4), (1, 1, 2)])
def test_solos_of_a_broken_group_are_an_error(rows, processes, group):
    with pytest.raises(ValueError, match=f"multiple of `group`, got {rows} x {processes} and {group}"):
        assign_solos(rows, processes, group, 1)
