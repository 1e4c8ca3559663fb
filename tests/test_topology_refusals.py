"""Teams that cannot be are refused with name, value and remedy, before anything loads."""

import pickle
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ccpo.team.topology import AnswerCritiqueRewrite, Chain, Role, ThinkSolve, Topology, make_topology

A, B = Role("a"), Role("b", reads=("a",))
TAKEN = ("problem", "outcome", "update", "default", "step", "image", "completions", "runs")


REMEDY = re.compile(
    r"[.:] (Write|Name|Rename|Set|Give|Take|Leave|Use|Add|Remove|Choose|Change) |, or (leave|set|remove) |, raise "
)


@contextmanager
def refusal(message):
    """An error with this message, which says what to do."""
    with pytest.raises(ValueError, match=message) as error:
        yield
    assert REMEDY.search(str(error.value)), error


def refused(roles, message, **kwargs):
    with refusal(message):
        Topology(roles, **kwargs)


# ---- Names ----


def test_no_roles():
    refused((), "`roles` is empty, but a team needs at least one role. Add a role")
    refused("ab", "`roles` must be a list, got 'ab'")
    refused(A, "`roles` must be a list, got Role")
    refused(["a"], r"Each item of `roles` must be a Role or a mapping of its fields, got 'a'. Write Role\('a'\)")


@pytest.mark.parametrize(
    "name",
    ["", "a b", "1a", "_a", "a/b", "{a}", "ä", "a.b", None, 1, *TAKEN],
)
def test_names(name):
    message = f"`name` of a role must be a letter, followed by letters, digits, '_' or '-', .*got {name!r}. Rename it"
    refused((Role(name),), message)
    if name is not None:
        refused((Role("a", agent=name),), message.replace("`name`", "`agent`"))


def test_names_have_a_length():
    longest, longer = "a" * 64, "a" * 65
    assert Topology((Role(longest, agent="b" * 64),)).role_names == (longest,)
    message = (
        f"`name` of a role may have at most 64 characters, because files are named after it. '{'a' * 20}'… "
        f"has 65. Choose a shorter name"
    )
    refused((Role(longer),), message)
    refused((Role("a", agent=longer),), message.replace("`name`", "`agent`"))


def test_two_of_one_name():
    refused((A, Role("b"), A), "`roles` has 2 roles named 'a'. Rename one")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        # b plays its own role and another's
        (
            (Role("a", agent="b"), B),
            r"`agent='b'` plays the roles \['a', 'b'\], but its name is also the name of a role. An agent .* may "
            r"play that role only",
        ),
        # a is played by x, and who is called a plays b
        (
            (Role("a", agent="x"), Role("b", ("a",), agent="a")),
            r"`agent='a'` plays the roles \['b'\], but its name is also the name of a role",
        ),
        (
            (Role("a", agent="b"), Role("b", ("a",), agent="a")),
            r"`agent='b'` plays the roles \['a'\], .*Rename the agent",
        ),
        (
            (Role("a", agent="Max"), Role("b", ("a",), agent="max")),
            "`agent` 'Max' and another agent differ only in upper and lower case",
        ),
        (
            (A, Role("A", ("a",))),
            "`agent` 'a' and another agent differ only in upper and lower case, but folders are named after them",
        ),
    ],
)
def test_agents(roles, message):
    refused(roles, message)


@pytest.mark.parametrize(
    ("other", "column"),
    [
        ("without_planner", "without_planner"),
        ("eval_planner", "eval_planner"),
        ("planner_outcome", "planner_outcome"),
        ("planner_credit", "planner_credit"),
        ("planner_advantage", "planner_advantage"),
        *((f"planner_{kind}",) * 2 for kind in ("prompt", "leaked", "truncated", "rating", "shares", "effect")),
    ],
)
def test_names_that_are_logged_alike(other, column):
    for roles in (("planner", other), (other, "planner")):
        message = f"`roles` has '{roles[0]}' and '{roles[1]}', which would both be logged as '{column}'. Rename one"
        with refusal(message):
            Chain(list(roles))
    with pytest.raises(ValueError, match="'a_credit' and 'without_a', .* as 'without_a_credit'"):
        Chain(["a_credit", "without_a"])
    assert Chain(["planner", "plan", "planners", "without_plans"])


def test_an_agent_is_no_checkpoint():
    refused(
        (Role("a", agent="checkpoint-3"),),
        "`agent` 'checkpoint-3' cannot start with 'checkpoint-': its folder would be taken for a checkpoint of the",
    )


def test_agents_that_may_be():
    assert Topology((Role("a", agent="a"), B)).agents == ("a", "b")
    assert Topology((Role("a", agent="x"), Role("b", ("a",), agent="x"))).agents == ("x",)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ({"reads": []}, r"A role in `roles` has no `name`: \{'reads': \[\]\}"),
        ({"name": None}, r"A role in `roles` has no `name`: \{'name': None\}. Give it one"),
        (
            {"name": "a", "read": []},
            r"A role in `roles` has the unknown keys \['read'\]. The keys of a role are \['name', 'reads', ",
        ),
        ({"name": "a", "reads": "b"}, "`reads` of `a` must be a list, got 'b'"),
        (Role("a", reads="b"), "`reads` of `a` must be a list, got 'b'"),
    ],
)
def test_roles_of_plain_values(role, message):
    refused([role], message)
    with refusal(message):
        Chain([role])


# ---- Who reads whom ----


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ((A, Role("b", ("x",))), r"`reads=\['x'\]` of role 'b': 'x' is not a role of the team. A role can read "
                                 r"only .* before it in .*a'\]"),
        ((Role("a", ("b",)), Role("b")), r"`reads=\['b'\]` of role 'a': 'b' does not speak before this role. .*, "
                                         r"here \[\]"),
        ((A, Role("b", ("a", "b"))), r"`reads=\['a', 'b'\]` of role 'b': 'b' does not speak before this role"),
        ((A, Role("b", (1,))), r"`reads=\[1\]` of role 'b': 1 is not a role"),
        ((A, Role("b", ("a", "a"))), r"`reads=\['a', 'a'\]` of role 'b' names a role twice. Name each role once"),
        ((A, Role("b")), "Role 'a' writes a text that no role reads and that is not judged. Add it to the "
                         "`reads` of a later role, set"),
        ((A, B, Role("c", ("a",))), "Role 'b' writes a text that no role reads and that is not judged. .* or "
                                    "remove the role"),
    ],
)  # fmt: skip
def test_reads(roles, message):
    refused(roles, message)


def test_what_is_judged_need_not_be_read():
    assert Topology((Role("a", judged=True), Role("b"))).judged == ("a", "b")


# ---- Numbers and switches ----


@pytest.mark.parametrize("branches", [0, -1, 1.0, True, "2", None])
def test_branches(branches):
    refused(
        (A, Role("b", ("a",), branches=branches)), f"`branches` of role 'b' must be .* at least 1, got {branches!r}"
    )


def test_branches_of_the_first():
    message = (
        "`branches=2` of role 'a' must be 1, because the first role writes one text in each episode .* "
        "raise `num_generations`"
    )
    refused((Role("a", branches=2), B), message)
    refused((Role("a", branches=2),), message)


@pytest.mark.parametrize("name", ["judged", "states_answer"])
def test_switches(name):
    refused((A, Role("b", ("a",), **{name: "yes"})), f"`{name}` of role 'b' must be true or false, got 'yes'")


# ---- Templates ----

ABC = (Role("a"), Role("b"))


def reader(**kwargs):
    return Role("c", ("a", "b"), **kwargs)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (reader(prompt="{a} {b}"), r"`prompt` of role 'c' must contain \{problem\}, got '\{a\} \{b\}'"),
        (reader(prompt="{problem} {a}"), r"`prompt` of role 'c' must contain \{b\}, got '\{problem\} \{a\}'"),
        (reader(prompt="{problem} {a} { b }"), r"`prompt` of role 'c' must contain \{b\}"),
        (reader(prompt=7), r"`prompt` of role 'c' must contain \{problem\}, got 7"),
        (
            reader(prompt="{problem} {a} {b} {c}"),
            r"`prompt` of role 'c' contains \{c\}, but the role does not read that role here: '.*'. Add the name "
            r"to `rea",
        ),
        (reader(prompt_without={"a": "{b}"}), r"`prompt_without\['a'\]` of role 'c' must contain \{problem\}, got '"),
        (reader(prompt_without={"a": "{problem}"}), r"`prompt_without\['a'\]` of role 'c' must contain \{b\}"),
        (
            reader(prompt_without={"a": "{problem} {a} {b}"}),
            r"`prompt_without\['a'\]` of role 'c' contains \{a\}, but the role does not read that role here",
        ),
        (reader(prompt_without={"b": None}), r"`prompt_without\['b'\]` of role 'c' must .* \{problem\}, got None"),
        (
            reader(prompt_without={"d": "{problem}"}),
            r"`prompt_without` of role 'c' names \['d'\], which the role does not read. It reads \['a', 'b'\]",
        ),
        (reader(prompt_without={"c": "{problem}"}), r"`prompt_without` of role 'c' names \['c'\], which the role "
                                                    r"does not"),
        (reader(prompt_without=["a"]), r"`prompt_without` of role 'c' must map names of roles to templates, got "
                                       r"\['a'\]"),
        (reader(prompt_without="{problem}"), "`prompt_without` of role 'c' must map names of roles to templates, "
                                             "got '{prob"),
    ],
)  # fmt: skip
def test_templates(role, message):
    refused((*ABC, role), message)


def test_a_template_that_names_a_role_it_does_not_read():
    refused(
        (Role("a"), Role("b", ("a",)), Role("c", ("b",), prompt="{problem} {b} {a}")),
        r"`prompt` of role 'c' contains \{a\}, but the role does not read that role here",
    )
    refused((Role("a", prompt="{problem} {b}"), B), r"`prompt` of role 'a' contains \{b\}")
    free = Topology((Role("a", prompt="{problem} {x} {} \\boxed{} {'a': 1}"), B))  # other braces are its own
    assert "{x}" in free["a"].prompt


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"thinker_prompt": "Think."}, r"`thinker_prompt` must contain \{problem\}, got 'Think.'"),
        ({"solver_prompt": "{thought}"}, r"`solver_prompt` must contain \{problem\}, got '\{thought\}'"),
        ({"solver_prompt": "{problem}"}, r"`solver_prompt` must contain \{thought\}, got '\{problem\}'"),
        ({"solo_prompt": "{thought}"}, r"`solo_prompt` must contain \{problem\}, got '\{thought\}'"),
        (
            {"solo_prompt": "{problem} {thought}"},
            r"`solo_prompt` cannot contain \{thought\}, because that text is not written yet .*, got",
        ),
        ({"thinker_prompt": "{problem} {thought}"}, r"`thinker_prompt` cannot contain \{thought\}"),
        ({"thinker_prompt": None}, r"`thinker_prompt` must contain \{problem\}, got None"),
    ],
)
def test_a_template_without_its_field_is_an_error(kwargs, match):
    with refusal(match):
        ThinkSolve(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"answer_prompt": "Answer."}, r"`answer_prompt` must contain \{problem\}, got 'Answer.'"),
        (
            {"answer_prompt": "{problem} {answer}"},
            r"`answer_prompt` cannot contain \{answer\}, because that text is not written yet",
        ),
        ({"critique_prompt": "{problem}"}, r"`critique_prompt` must contain \{answer\}, got '\{problem\}'"),
        ({"critique_prompt": "{problem} {answer} {critique}"}, r"`critique_prompt` cannot contain \{critique\}"),
        ({"rewrite_prompt": "{problem} {answer}"}, r"`rewrite_prompt` must contain \{critique\}, got"),
    ],
)
def test_templates_of_answer_critique_rewrite(kwargs, match):
    with refusal(match):
        AnswerCritiqueRewrite(**kwargs)


# ---- Whose the answer is ----

VOTERS = (Role("a", judged=True), Role("b", judged=True))


@pytest.mark.parametrize(
    ("roles", "kwargs", "message"),
    [
        (VOTERS, {"answer": "best"}, r"`answer` must be one of \['last', 'vote', 'mean'\], got 'best'"),
        ((A, B), {"answer_roles": ("a",)}, r"`answer_roles=\['a'\]` does not work with `answer='last'`, where the "
                                           r"last role gives the answer. Remove `answer_roles`"),
        (VOTERS, {"answer": "mean", "answer_roles": ("x",)}, r"`answer_roles` names \['x'\], which are not roles "
                                                             r"of the team. .*"),
        (VOTERS, {"answer": "mean", "answer_roles": "ab"}, "`answer_roles` must be a list, got 'ab'"),
        (VOTERS, {"answer": "mean", "answer_roles": [*"aba"]}, r"`answer_roles=\['a', 'b', 'a'\]` names .* twice"),
        ((A, B), {"answer": "mean"}, "`answer='mean'` needs roles whose texts are judged. Set `judged` to true "
                                     "for some roles, or name them in `answer_roles`"),
        (
            (VOTERS[0], Role("b", branches=2, judged=True)),
            {"answer": "vote"},
            "With `answer='vote'`, every role must be .* have `branches=1`. Role 'b' has `branches=2`.* or use "
            "`answer='mean'`",
        ),
        (
            (Role("a"), Role("b", ("a",), judged=True)),
            {"answer": "vote"},
            r"With `answer='vote'`, every role must be .*. Role 'a' has `branches=1`, and `answer_roles` is \['b'\]",
        ),
        (
            (VOTERS[0], Role("b", ("a",), judged=True)),
            {"answer": "vote"},
            r"With `answer='vote'`, no voter may read another role, but role 'b' has `reads=\['a'\]`. Remove its "
            r"`reads`",
        ),
    ],
)  # fmt: skip
def test_answers(roles, kwargs, message):
    refused(roles, message, **kwargs)


def test_answer_roles_that_may_be():
    assert Topology((A, B), answer_roles=("b",)) == Topology((A, B))
    assert Topology(VOTERS, answer="mean").answer_roles == ("a", "b")
    assert Topology((A, B), answer="mean", answer_roles=["b", "a"]).judged == ("a", "b")


def test_answer_roles_that_nobody_gave_follow_the_roles():
    chain = Topology((A, B, Role("c", ("b",))))
    assert replace(chain, roles=chain.roles[:2]).answer_roles == ("b",)
    votes = Topology((*VOTERS, Role("c", judged=True)), "vote")
    assert replace(votes, roles=votes.roles[:2]) == Topology(VOTERS, "vote")
    assert replace(pickle.loads(pickle.dumps(votes)), answer="mean", roles=VOTERS).answer_roles == ("a", "b")
    voters = Topology((Role("a"), Role("b")), "vote", ("a", "b"))
    assert replace(voters, answer="mean") == Topology((Role("a"), Role("b")), "mean", ("a", "b"))
    given = Topology((A, B), answer="mean", answer_roles=["b"])
    with refusal(r"`answer_roles` names \['b'\], which are not roles of the team"):
        replace(given, roles=(A,))


# ---- Plain values ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, r"`topology` must be the name of a team or a mapping, got 5. Write \{roles: \[...\]\}"),
        ([{"name": "a"}], "`topology` must be the name of a team or a mapping, got "),
        ("debate", r"`topology` must be one of the kinds \['team', 'solo', 'think_solve', 'chain', 'vote', .*got "
                   r"'debate'"),
        ({"kind": 5}, r"`topology` must be one of the kinds .*, got 5"),
        ({"kind": ["vote"]}, r"`topology` must be one of the kinds .*, got \['vote'\]"),
        ("chain", r"`topology` of the kind 'chain' needs `roles`, got \{\}"),
        ({}, r"`topology` of the kind 'team' needs `roles`, got \{\}"),
        ({"answer": "last"}, "`topology` of the kind 'team' needs `roles`"),
        ({"role": []}, r"`topology` of the kind 'team' has the unknown keys \['role'\]. It may have \['roles', "
                       r"'answer', "),
        (
            {"kind": "vote", "voters": 3},
            r"`topology` of the kind 'vote' has the unknown keys \['voters'\]. It may have \['num_voters', "
            r"'prompt', 'agent'",
        ),
        ({"kind": "vote", "answer": "last"}, r"the kind 'vote' has the unknown keys \['answer'\]"),
        ({"kind": "think_solve", "roles": []}, r"has the unknown keys \['roles'\]. It may have "
                                               r"\['thinker_prompt', 'solver_"),
        ({"kind": "chain", "roles": ["a"], "answer": "mean"}, r"has the unknown keys \['answer'\]. It may have "
                                                              r"\['roles'\]"),
        ({"kind": "solo", "roles": [{"name": "a"}]}, r"has the unknown keys \['roles'\]. It may have \['prompt'\]"),
        ({"roles": [{"name": "a"}, {"name": "b"}]}, "Role 'a' writes a text that no role reads"),
    ],
)  # fmt: skip
def test_plain_values(given, message):
    with refusal(message):
        make_topology(given)
