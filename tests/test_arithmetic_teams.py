"""The embedded task for each family of teams: topologies, tokenizers and demonstrations."""

import re
from collections import Counter

import pytest

from ccpo.tasks import arithmetic
from ccpo.tasks.arithmetic import chain, dacr
from ccpo.team.rollout import Passes, run_team
from ccpo.team.topology import AnswerCritiqueRewrite, Chain, Role, ThinkSolve, Topology, Vote

KINDS = ("vote", "answer_critique_rewrite", "chain")
ROLES = [(kind, role) for kind in KINDS for role in arithmetic.topology(kind).role_names]
BOX = re.compile(r"\\boxed\{(\d+)\}")
WORK = re.compile(r"(\d+)\*(\d+)=\\boxed\{(\d+)\}")
SUM = re.compile(r"(\d+)\+(\d+)=(\d+)")
N = 6000


def rows_of(kind, role, n=N, seed=1):
    return arithmetic.demonstrations(role, n, seed, arithmetic.topology(kind))


def split(prompt):
    """The problem's numbers and the texts of a prompt, by the word before each; the last is what is asked for."""
    problem, *parts = re.split(r" (Answer|Check|Plan|Sum): ", prompt)
    assert parts[-1] == ""
    numbers = tuple(map(int, re.fullmatch(r"\((\d+)\+(\d+)\)\*(\d+)", problem).groups()))
    return numbers, dict(zip(["asks", *parts[0::2]], ["", *parts[1::2]], strict=True)) | {"last": parts[-2]}


def assert_shares(counts: Counter, shares, tolerance=0.03):
    assert counts.keys() == shares.keys()
    for kind, share in shares.items():
        assert counts[kind] / counts.total() == pytest.approx(share, abs=tolerance), kind


# ---- Topologies ----


def test_topologies_have_the_task_s_prompts():
    vote, pair, three = (arithmetic.topology(kind) for kind in KINDS)
    assert isinstance(arithmetic.topology("think_solve"), ThinkSolve)
    assert arithmetic.topology("think_solve") == arithmetic.topology()
    assert vote == Vote(3, prompt="{problem} Answer: ")
    assert pair == AnswerCritiqueRewrite(
        answer_prompt="{problem} Answer: ",
        critique_prompt="{problem} Answer: {answer} Check: ",
        rewrite_prompt="{problem} Answer: {answer} Check: {critique} Answer: ",
    )
    assert isinstance(three, Chain) and three.is_chain
    assert three.role_names == three.agents == ("planner", "adder", "solver")


def test_what_is_given_stays():
    assert arithmetic.topology({"kind": "vote", "num_voters": 5, "agent": "voter"}).agents == ("voter",)
    assert arithmetic.topology({"kind": "vote", "prompt": "{problem}?"}).prompt == "{problem}?"
    own = Topology((Role("planner"), Role("solver", reads=("planner",))))
    assert arithmetic.topology(own) is own
    assert arithmetic.topology({"roles": [{"name": "alone"}]}).role_names == ("alone",)
    with pytest.raises(ValueError, match="`topology` must be one of the kinds"):
        arithmetic.topology("debate")


def test_every_role_of_the_chain_but_the_last_can_be_removed():
    team = arithmetic.topology("chain")
    echo = {name: lambda prompts: [prompt.replace("(1+2)*3", "") for prompt in prompts] for name in team.role_names}
    passes = {name: Passes((0,)) for name in ("planner", "adder")}
    episodes = run_team(team, ["(1+2)*3"], echo, removals=passes)
    assert episodes.without["planner"]["adder"].prompts == ["(1+2)*3 Sum: "]
    assert episodes.without["planner"]["solver"].prompts == ["(1+2)*3 Sum:  Sum:  Answer: "]
    assert list(episodes.without["adder"]) == ["solver"]  # only the adder read the planner
    assert episodes.without["adder"]["solver"].prompts == ["(1+2)*3 Answer: "]


# ---- Tokenizers ----


def test_words_of_a_family_come_behind_the_others():
    plain = arithmetic.build_tokenizer()
    before = plain.convert_ids_to_tokens(range(len(plain)))
    for kind, family in arithmetic.FAMILIES.items():
        tokenizer = arithmetic.build_tokenizer(family.words)
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        assert tokens == [*before, *family.words]
        assert (tokens == before) == (kind in ("think_solve", "solo", "vote"))
        for word in family.words:
            assert tokenizer(f"7{word}12").input_ids[1:-1] == [tokens.index(word)]


@pytest.mark.parametrize(("kind", "role"), ROLES)
def test_demonstrations_are_short_seeded_and_split_between_tokens(kind, role):
    tokenizer = arithmetic.build_tokenizer(arithmetic.FAMILIES[kind].words)
    rows = rows_of(kind, role, 300, seed=0)
    assert rows.column_names == ["prompt", "completion"] and len(rows) == 300
    assert rows.to_list() == rows_of(kind, role, 300, seed=0).to_list() != rows_of(kind, role, 300, seed=1).to_list()
    for row in rows:
        text = row["prompt"] + row["completion"]
        prompt, completion = tokenizer(row["prompt"]).input_ids, tokenizer(row["completion"]).input_ids
        assert tokenizer(text).input_ids == prompt + completion
        assert tokenizer.decode(prompt + completion) == text and tokenizer.unk_token_id not in prompt + completion
        assert len(completion) < 12 and len(prompt + completion) < 48  # 12 with the end-of-sequence token


# ---- Demonstrations ----


@pytest.mark.parametrize(("kind", "role"), ROLES)
def test_demonstrations_leave_the_held_out_problems_alone(kind, role):
    training = set(arithmetic.build_dataset("train")["prompt"])
    assert {row["prompt"].split(" ")[0] for row in rows_of(kind, role, 2000)} <= training


def classify_guess(text, a, b, c):
    """How an answer without anything to go by came about; `None` where two ways look the same."""
    forms = {
        "right": f"{a + b}*{c}=\\boxed{{{(a + b) * c}}}",
        "wrong_pair": f"{a + c}*{c}=\\boxed{{{(a + c) * c}}}",
        "only_sum": f"\\boxed{{{a + b}}}",
        "only_product": f"\\boxed{{{b * c}}}",
    }
    if len(set(forms.values())) < 4:
        return None
    return next((kind for kind, form in forms.items() if form == text), "unknown")


@pytest.mark.parametrize(
    ("kind", "role", "shares"),
    [
        ("vote", "voter_2", arithmetic.GUESS_SHARES),
        ("answer_critique_rewrite", "answer_b", dacr.GUESS_SHARES),
        ("chain", "solver", chain.GUESS_SHARES),
    ],
)
def test_answers_with_nothing_to_go_by(kind, role, shares):
    guesses = Counter()
    for row in rows_of(kind, role, 3 * N):
        numbers, texts = split(row["prompt"])
        if SUM.fullmatch(texts.get("Sum", "")):
            continue
        assert texts.get("Sum", "") in ("", *arithmetic.REMARKS)
        guesses[classify_guess(row["completion"], *numbers)] += 1
    del guesses[None]
    assert_shares(guesses, shares)


def classify_text(text, a, b, c):
    """A thought, without its verdict."""
    if text in arithmetic.REMARKS:
        return "remark"
    kinds = {f"{a}+{b}={a + b}": "right", f"{a}+{c}={a + c}": "wrong_pair"}
    leaks = (f"\\boxed{{{a + b}}}", f"\\boxed{{{(a + b) * c}}}")
    return "leak" if text in leaks else kinds.get(text, "unknown")


def test_critiques():
    kinds, verdicts = Counter(), Counter()
    for row in rows_of("answer_critique_rewrite", "critique_a"):
        (a, b, c), texts = split(row["prompt"])
        answer = texts["Answer"]
        text, verdict = re.fullmatch(r"(.*?)(?: (right|wrong))?", row["completion"]).groups()
        if b == c:
            continue
        kinds[classify_text(text, a, b, c)] += 1
        assert (verdict is not None) == ("+" in text)
        if verdict:
            work = WORK.fullmatch(answer)
            assert (verdict == "right") == (work is not None and text.endswith(f"={work[1]}"))
            if text.endswith(f"+{b}={a + b}"):  # a right critique says whether the answer is the problem's
                is_right = work is not None and int(BOX.search(answer)[1]) == (a + b) * c
                verdicts[is_right, verdict] += 1
    assert_shares(kinds, dacr.CRITIQUE_SHARES)
    assert verdicts.keys() == {(True, "right"), (False, "wrong")}


def test_rewrites_follow_keep_or_answer_anew():
    blind, with_sum = Counter(), Counter()
    for row in rows_of("answer_critique_rewrite", "rewrite_b", 3 * N):
        numbers, _ = split(row["prompt"])
        own, critique = re.fullmatch(r".*? Answer: (.*) Check: (.*) Answer: ", row["prompt"]).groups()
        assert "boxed" not in critique  # the leak guard
        stated, (_, _, c) = SUM.match(critique), numbers
        follow = f"{stated[3]}*{c}=\\boxed{{{int(stated[3]) * c}}}" if stated else None
        text = row["completion"]
        way = "follow" if text == follow else "keep" if text == own else "guess"
        assert way != "guess" or classify_guess(text, *numbers) != "unknown"
        # where the ways do not look alike: a product that forgets the sum, and a critique that adds the wrong pair
        if classify_guess(own, *numbers) == "only_product":
            if stated is None:
                blind[way] += 1
            elif critique.endswith(f"+{c}={stated[3]} wrong"):
                with_sum[way] += 1
    again, wrong = (dacr.GUESS_SHARES[kind] for kind in ("only_product", "wrong_pair"))  # of a guess
    keep, guess = (dacr.BLIND_SHARES[kind] for kind in ("keep", "guess"))
    assert_shares(blind, {"keep": keep + guess * again, "guess": guess * (1 - again)}, tolerance=0.05)
    follow, keep, guess = (dacr.REWRITE_SHARES[kind] for kind in ("follow", "keep", "guess"))
    shares = {"follow": follow + guess * wrong, "keep": keep + guess * again, "guess": guess * (1 - again - wrong)}
    assert_shares(with_sum, shares, tolerance=0.07)


def test_plans():
    kinds = Counter()
    for row in rows_of("chain", "planner"):
        (a, b, c), text = split(row["prompt"])[0], row["completion"]
        if b == c:
            continue
        pairs = {f"{a}+{b}": "right", f"{a}+{c}": "wrong_pair"}
        kinds[pairs.get(text) or classify_text(text, a, b, c)] += 1
    assert_shares(kinds, chain.PLAN_SHARES)


def test_sums_follow_the_plan_or_not():
    views, followed, own = Counter(), Counter(), Counter()
    for row in rows_of("chain", "adder", 2 * N):
        (a, b, c), texts = split(row["prompt"])
        plan, text = texts.get("Plan"), row["completion"]
        views["alone" if plan is None else "leak" if not plan else "other"] += 1
        stated = SUM.fullmatch(text)
        assert stated is None or int(stated[3]) == int(stated[1]) + int(stated[2])  # it adds what it adds
        if b == c:
            continue
        if plan and "+" in plan:
            followed["follow" if text.startswith(f"{plan}=") else "own"] += 1
        else:
            assert plan in (None, "", *arithmetic.REMARKS)
            own[classify_text(text, a, b, c)] += 1
    alone, leak = arithmetic.FAMILIES["chain"].without_share, chain.PLAN_SHARES["leak"]
    assert_shares(views, {"alone": alone, "leak": (1 - alone) * leak, "other": (1 - alone) * (1 - leak)})
    assert_shares(own, chain.OWN_SUM_SHARES)
    # One's own way leads to the plan's pair, too: to the right one or the wrong one, as the plan is.
    right, wrong = (chain.PLAN_SHARES[kind] for kind in ("right", "wrong_pair"))
    same = (right * chain.OWN_SUM_SHARES["right"] + wrong * chain.OWN_SUM_SHARES["wrong_pair"]) / (right + wrong)
    follow = chain.SUM_SHARES["follow"]
    assert_shares(followed, {"follow": follow + (1 - follow) * same, "own": (1 - follow) * (1 - same)})


def test_shares_sum_to_one():
    tables = [shares for module in (chain, dacr) for name, shares in vars(module).items() if name.endswith("_SHARES")]
    assert len(tables) == 9
    for shares in tables:
        assert sum(shares.values()) == pytest.approx(1)


def test_a_team_that_the_task_cannot_play_is_refused():
    own = Topology((Role("planner"), Role("solver", reads=("planner",))))
    with pytest.raises(ValueError, match=r"no examples .* for a team of the kind 'team' with the roles .*planner"):
        arithmetic.demonstrations("planner", 1, team=own)
    known = r"It has some for \{.*'chain': \['planner', 'adder', 'solver'\]\}"
    with pytest.raises(ValueError, match=rf"no examples .* for a team of the kind 'chain' .*'critic'.* {known}"):
        arithmetic.demonstrations("critic", 1, team=Chain(["critic", "solver"]))
    with pytest.raises(ValueError, match=r"`reads=\['planner'\]` of role 'solver'.* reads \['adder'\]"):
        arithmetic.demonstrations("solver", 1, team=Chain(["planner", "solver"]))
    with pytest.raises(ValueError, match=r"`role` must be one of \('planner', 'adder', 'solver'\), got 'thinker'"):
        arithmetic.demonstrations("thinker", 1, team=arithmetic.topology("chain"))
