"""The texts of a team as a tree: who continues and reads whom, by hand and against a recursive version."""

import random
import re
from collections import Counter

import pytest

from ccpo.team.rollout import Passes, run_team
from ccpo.team.topology import AnswerCritiqueRewrite, Chain, Role, ThinkSolve, Topology


class Counting:
    """Says `<role><how often it was asked exactly this>` and what it was asked, so that no two texts are alike."""

    def __init__(self, name, box=True):
        self.name, self.box, self.asked, self.calls = name, box, Counter(), 0

    def say(self, prompt):
        self.asked[prompt] += 1
        box = "\\boxed{7}" if self.box else ""
        return f"<{self.name}{self.asked[prompt]}{box} {prompt}>"

    def __call__(self, prompts):
        self.calls += 1
        return [self.say(prompt) for prompt in prompts]


def template(name, reads):
    return f"{name}:{{problem}}" + "".join(f",{{{read}}}" for read in reads)


def team(reads, *, judged=(), states_answer=(), branches=None, agents=None):
    """A team of templates that show all that is read; `reads` maps a role to what it reads."""
    roles = []
    for i, (name, earlier) in enumerate(reads.items()):
        without = {gone: template(f"{name}-{gone}", [n for n in earlier if n != gone]) for gone in earlier}
        roles.append(
            Role(
                name,
                tuple(earlier),
                agent=(agents or {}).get(name),
                prompt=template(name, earlier),
                prompt_without=without,
                branches=branches[i] if branches else 1,
                judged=name in judged,
                states_answer=name in states_answer,
            )
        )
    return Topology(tuple(roles))


# ---- By hand ----


def test_branches_1_2_3_by_hand():
    """Two problems. Text m of c continues text m // 3 of b and stands below text m // 6 of a."""
    topology = team({"a": "", "b": "a", "c": "ab"}, branches=(1, 2, 3))
    generate = {name: (lambda prompts, name=name: [f"{name}{i}" for i in range(len(prompts))]) for name in "abc"}
    episodes = run_team(topology, ["p", "q"], generate)
    assert episodes.branches == (1, 2, 3) and [episodes.texts_per_row(name) for name in "abc"] == [1, 2, 6]
    said = episodes.said
    assert said["a"].prompts == ["a:p", "a:q"] and said["a"].rows == [0, 1]
    assert said["b"].prompts == ["b:p,a0", "b:p,a0", "b:q,a1", "b:q,a1"] and said["b"].rows == [0, 0, 1, 1]
    assert said["c"].prompts == [
        *["c:p,a0,b0"] * 3,
        *["c:p,a0,b1"] * 3,
        *["c:q,a1,b2"] * 3,
        *["c:q,a1,b3"] * 3,
    ]
    assert said["c"].rows == [0] * 6 + [1] * 6 and episodes.answers == [f"c{i}" for i in range(12)]
    assert [episodes.above("a", leaf) for leaf in range(12)] == [0] * 6 + [1] * 6
    assert [episodes.above("b", leaf) for leaf in range(12)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [episodes.above("c", leaf) for leaf in range(12)] == list(range(12))


def test_who_does_not_read_the_one_before_continues_it_all_the_same():
    """b does not read a, and branches twice from each of its texts; c reads both, those that it stands below."""
    topology = team({"a": "", "b": "", "c": "ab"}, branches=(1, 2, 2))
    episodes = run_team(topology, ["p"], {name: Counting(name, box=False) for name in "abc"})
    assert episodes.said["b"].texts == ["<b1 b:p>", "<b2 b:p>"]
    assert episodes.said["c"].prompts == ["c:p,<a1 a:p>,<b1 b:p>"] * 2 + ["c:p,<a1 a:p>,<b2 b:p>"] * 2


def test_removal_by_prompt_by_hand():
    """One pass speaks once each, whatever the branches, and reads what was said in it."""
    topology = team({"a": "", "b": "a", "c": "ab"}, branches=(1, 2, 3))
    generate = {name: Counting(name, box=False) for name in "abc"}
    removals = {"a": Passes((1, 0)), "b": Passes((0, 0))}
    episodes = run_team(topology, ["p", "q"], generate, removals=removals)
    without = episodes.without["a"]
    assert without["b"].prompts == ["b-a:q", "b-a:p"] and without["b"].rows == [1, 0]
    assert without["c"].prompts == ["c-a:q,<b1 b-a:q>", "c-a:p,<b1 b-a:p>"]
    without = episodes.without["b"]
    assert set(without) == {"a", "c"}  # a speaks anew
    assert without["a"].texts == ["<a2 a:p>", "<a3 a:p>"] and episodes.said["a"].texts == ["<a1 a:p>", "<a1 a:q>"]
    assert without["c"].prompts == ["c-b:p,<a2 a:p>", "c-b:p,<a3 a:p>"]
    assert episodes.passes == removals


def test_removal_in_context_by_hand():
    """From each text of the role before, those before stay as they spoke."""
    topology = team({"a": "", "b": "a", "c": "ab", "d": "abc"}, branches=(1, 2, 1, 1))
    generate = {name: Counting(name, box=False) for name in "abcd"}
    places = (0, 0, 1, 2, 3, 3)
    episodes = run_team(topology, ["p", "q"], generate, removals={"c": Passes(places, in_context=True)})
    without = episodes.without["c"]
    assert set(without) == {"d"}
    a, b = episodes.said["a"].texts, episodes.said["b"].texts
    assert without["d"].prompts == [f"d-c:{'pq'[m // 2]},{a[m // 2]},{b[m]}" for m in places]
    assert without["d"].rows == [0, 0, 0, 1, 1, 1]
    assert (generate["a"].calls, generate["b"].calls, generate["d"].calls) == (1, 1, 1)


def test_what_only_the_removed_role_read_is_not_drawn():
    """b reads a, and c reads b alone: without b nobody needs a. Without c, a and b are silent."""
    topology = Chain([Role(name, prompt=None) for name in "abcd"])
    generate = {name: Counting(name) for name in "abcd"}
    removals = {name: Passes((0,)) for name in "abc"}
    episodes = run_team(topology, ["p"], generate, removals=removals)
    assert {name: list(said) for name, said in episodes.without.items()} == {
        "a": ["b", "c", "d"],
        "b": ["c", "d"],
        "c": ["d"],
    }
    assert [sum(generate[name].asked.values()) for name in "abcd"] == [1, 2, 3, 4]


def test_given_texts_grow_a_tree():
    topology = team({"a": "", "b": "a", "c": "ab"}, branches=(1, 2, 2))
    generate = {name: Counting(name, box=False) for name in "bc"}
    removals = {"a": Passes((0, 1))}
    episodes = run_team(topology, ["p", "q"], generate, given={"a": ["x", "y\\boxed{1}"]}, removals=removals)
    assert episodes.said["a"].texts == ["x", "y\\boxed{1}"] and episodes.said["a"].prompts == []
    assert episodes.said["b"].prompts == ["b:p,x"] * 2 + ["b:q,y"] * 2
    assert [prompt[:5] for prompt in episodes.said["c"].prompts] == ["c:p,x"] * 4 + ["c:q,y"] * 4
    assert episodes.without["a"]["b"].prompts == ["b-a:p", "b-a:q"]
    assert episodes.leaked[:2] == [False, True]


# ---- Against a recursive version ----


class Slow:
    """The same by recursion: a text, and all that follows from it, before the next."""

    def __init__(self, reads, branches, problems, *, judged, states_answer):
        self.reads, self.names, self.branches, self.problems = reads, list(reads), branches, problems
        self.judged, self.states_answer = {*judged, self.names[-1]}, states_answer
        self.speakers = {name: Counting(name) for name in reads}
        self.said = {name: [] for name in reads}  # (row, prompt, text)
        self.paths = {name: [] for name in reads}  # what was said down to each text
        for row in range(len(problems)):
            self.grow(row, 0, {})

    def ask(self, name, row, path, gone=None):
        def seen(read):
            text = path[read]
            return text if read in self.states_answer else re.sub(r"\\boxed\{7\}", "", text)

        reads = [read for read in self.reads[name] if read != gone]
        who = f"{name}-{gone}" if gone in self.reads[name] else name
        prompt = f"{who}:{self.problems[row]}" + "".join(f",{seen(read)}" for read in reads)
        return row, prompt, self.speakers[name].say(prompt)

    def grow(self, row, depth, path):
        if depth == len(self.names):
            return
        name = self.names[depth]
        for _ in range(self.branches[depth]):
            spoken = self.ask(name, row, path)
            self.said[name].append(spoken)
            longer = {**path, name: spoken[2]}
            self.paths[name].append((row, longer))
            self.grow(row, depth + 1, longer)

    def needed(self, name, gone):
        """Whether the team without a role needs this one: it is judged, or one that is needed reads it."""
        readers = [other for other in self.names if other != gone and name in self.reads[other]]
        return name in self.judged or any(self.needed(other, gone) for other in readers)

    def remove(self, gone, places, in_context):
        said = {}
        at = self.names.index(gone)
        for place in places:
            row, path = self.paths[self.names[at - 1]][place] if in_context else (place, {})
            path = dict(path)
            for name in self.names[at + 1 :] if in_context else self.names:
                if name != gone and self.needed(name, gone):
                    spoken = self.ask(name, row, path, gone)
                    said.setdefault(name, []).append(spoken)
                    path[name] = spoken[2]
        return said


def draw_team(rng):
    """Reads, branches, judged and stating roles of a random team whose last role answers."""
    names = "abcde"[: rng.randint(2, 5)]
    reads = {name: [other for other in names[:i] if rng.random() < 0.6] for i, name in enumerate(names)}
    for i, name in enumerate(names[:-1]):  # somebody reads it
        if not any(name in reads[other] for other in names[i + 1 :]):
            reads[names[-1]].append(name)
    for earlier in reads.values():
        rng.shuffle(earlier)
    branches = (1, *(rng.randint(1, 3) for _ in names[1:]))
    judged = [name for name in names[:-1] if rng.random() < 0.2]
    return reads, branches, judged, [name for name in names if rng.random() < 0.4]


def texts_of(said):
    return {name: list(zip(texts.rows, texts.prompts, texts.texts, strict=True)) for name, texts in said.items()}


@pytest.mark.parametrize("seed", range(60))
def test_any_team_against_recursion(seed):
    rng = random.Random(seed)
    reads, branches, judged, states = draw_team(rng)
    problems = [f"q{i}" for i in range(rng.randint(1, 3))]
    topology = team(reads, judged=judged, states_answer=states, branches=branches)
    slow = Slow(reads, branches, problems, judged=judged, states_answer=states)
    removals = {}
    for place, gone in enumerate(topology.role_names[:-1]):
        if topology.removable(gone) and rng.random() < 0.8:
            in_context = place > 0 and rng.random() < 0.6
            size = len(slow.said[topology.role_names[place - 1]]) if in_context else len(problems)
            places = tuple(rng.choices(range(size), k=rng.randint(1, 6)))
            removals[gone] = Passes(places, in_context)
    generate = {name: Counting(name) for name in reads}
    episodes = run_team(topology, problems, generate, removals=removals)
    assert texts_of(episodes.said) == slow.said
    for gone, passes in removals.items():
        assert texts_of(episodes.without[gone]) == slow.remove(gone, passes.places, passes.in_context), gone
    assert set(episodes.without) == set(removals)
    # every text has a box
    assert episodes.leaked == [True for name in reads if topology.guarded(name) for _ in slow.said[name]]
    assert all(generate[name].calls == 1 for name in reads)
    leaves = len(slow.said[topology.role_names[-1]])
    for name in reads:
        path = [slow.paths[topology.role_names[-1]][leaf][1][name] for leaf in range(leaves)]
        assert path == [episodes.said[name].texts[episodes.above(name, leaf)] for leaf in range(leaves)]


@pytest.mark.parametrize("seed", range(20))
def test_calls_of_any_team(seed):
    """One for each level and generator, however the roles share them, with the same texts."""
    rng = random.Random(seed)
    reads, branches, judged, states = draw_team(rng)
    topology = team(reads, judged=judged, states_answer=states, branches=branches)
    removals = {name: Passes((0, 1, 1)) for name in topology.role_names if topology.removable(name)}
    made = []

    class Plain:
        """Says what its prompt alone decides."""

        def __init__(self):
            self.calls = 0
            made.append(self)

        def __call__(self, prompts):
            self.calls += 1
            return [f"<{prompt}>" for prompt in prompts]

    policies = [Plain() for _ in range(rng.randint(1, 3))]
    generate = {name: rng.choice(policies) for name in reads}
    mixed = run_team(topology, ["p", "q"], generate, removals=removals)
    pairs = {(topology.levels[name], id(generate[name])) for name in reads}
    assert sum(policy.calls for policy in policies) == len(pairs)
    apart = run_team(topology, ["p", "q"], {name: Plain() for name in reads}, removals=removals)
    assert [plain.calls for plain in made[len(policies) :]] == [1] * len(reads)
    assert texts_of(mixed.said) == texts_of(apart.said)
    assert {gone: texts_of(said) for gone, said in mixed.without.items()} == {
        gone: texts_of(said) for gone, said in apart.without.items()
    }
    for policy in policies:  # each text's place among all that its generator was asked
        mine = [mixed.said[name] for name in reads if generate[name] is policy]
        mine += [s for said in mixed.without.values() for name, s in said.items() if generate[name] is policy]
        spans = sorted((said.start, said.start + len(said.texts)) for said in mine)
        assert all(end == start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        assert not spans or spans[0][0] == 0


# ---- Properties ----


def test_more_prompts_are_each_by_itself():
    """A problem's texts do not depend on the others, nor on the order."""
    topology = team({"a": "", "b": "a", "c": "ab"}, branches=(1, 2, 2))
    problems = ["p", "q", "r"]

    def run(rows):
        prompts = [problems[row] for row in rows]
        generate = {name: Counting(name) for name in "abc"}
        return run_team(topology, prompts, generate, removals={"b": Passes(tuple(range(len(rows))))})

    whole = run((0, 1, 2))
    for row in range(3):
        (one,) = [run((row,))]
        for name in "abc":
            size = whole.texts_per_row(name)
            assert one.said[name].texts == whole.said[name].texts[row * size : (row + 1) * size]
        assert one.without["b"]["c"].texts == whole.without["b"]["c"].texts[row : row + 1]
    turned = run((2, 0, 1))
    assert turned.answers == whole.answers[8:] + whole.answers[:8]


def test_shipped_teams_read_as_drawn():
    def speak(name):
        return lambda prompts: [f"<{name}>"] * len(prompts)

    dacr = AnswerCritiqueRewrite()
    episodes = run_team(dacr, ["p"], {name: speak(name) for name in dacr.role_names})
    for name in dacr.role_names:
        (asked,) = episodes.said[name].prompts
        assert {other for other in dacr.role_names if f"<{other}>" in asked} == set(dacr[name].reads)
    think = run_team(ThinkSolve(), ["p"], {name: speak(name) for name in ThinkSolve().role_names}, branches=[1, 2])
    assert ["<thinker>" in asked for asked in think.said["solver"].prompts] == [True, True]


def test_the_first_role_has_no_context():
    generate = {"thinker": Counting("thinker"), "solver": Counting("solver")}
    with pytest.raises(
        ValueError, match=r"`removals\['thinker'\]` has `in_context=True`.*There is no role before the first"
    ):
        run_team(ThinkSolve(), ["p"], generate, removals={"thinker": Passes((0,), in_context=True)})
