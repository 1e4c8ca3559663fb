"""The evaluation's arms and tables: with generators whose answers are known, and with a real tiny team."""

import json
import random
import re
import resource
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from openai_server import FaultyEndpoint
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo import AnswerCritiqueRewrite, Chain, MathVerifier, OpenAIGenerator, Role, Solo, ThinkSolve, Vote
from ccpo.evaluation import Team, evaluate, evaluate_team
from ccpo.evaluation.description import describe_generator, find_difference, identity, plain
from ccpo.evaluation.results import majority_right
from ccpo.generation import Completion, TransformersGenerator, VLLMGenerator


class Says:
    """A generator of a rule: prompt text -> text; it counts its prompts, and its tokens are letters."""

    def __init__(self, rule, tokens=len):
        self.rule, self.tokens, self.prompts = rule, tokens, []

    def generate(self, prompts):
        self.prompts += prompts
        texts = [self.rule(prompt if isinstance(prompt, str) else prompt[-1]["content"]) for prompt in prompts]
        return [Completion(text, self.tokens(text), False) for text in texts]

    def __call__(self, prompts):
        return [completion.text for completion in self.generate(prompts)]


def outcome(prompts, completions, solution, **kwargs):
    return [None if s is None else 1.0 if c.strip() == s else -1.0 for c, s in zip(completions, solution, strict=True)]


outcome.extract = lambda text: text.strip() or None
outcome.equal = lambda a, b: a == b
PROBLEMS = Dataset.from_dict({"prompt": ["1", "2", "3", "4"], "solution": ["1", "2", "3", None]})
WITHOUT = {"hinter": "alone {problem}"}
TEAM = Chain(
    [
        Role("hinter", prompt="hint {problem}"),
        Role(
            "writer",
            reads=("hinter",),
            prompt="{problem}:{hinter}",
            prompt_without=WITHOUT,
        ),
    ]
)


def hint(text):
    return "9" if text.endswith("3") else text.split()[-1]


def write(text):
    return text.split(":")[1] or "?" if ":" in text else "1"


def make_team():
    """The hinter says the answer but for 3; the writer repeats it, and knows 1 alone."""
    return Team(TEAM, {"hinter": Says(hint), "writer": Says(write)}, outcome)


def numbered(count):
    return Dataset.from_dict({"prompt": [str(i) for i in range(count)], "solution": [str(i) for i in range(count)]})


def read_json(folder):
    return json.loads((folder / "results.json").read_text())


# ---- The arms ----


def test_every_arm_by_hand(tmp_path):
    single = Team(Solo(), {"solver": Says(lambda text: "2")})  # judged as the team is
    swaps = {"hinter": Says(lambda text: "3")}
    options = {"output_dir": tmp_path, "k": 2, "single": single, "swaps": swaps}
    found = evaluate(make_team(), {"four": PROBLEMS}, **options)["four"]
    right = {name: arm.right.nan_to_num(nan=-1).tolist() for name, arm in found.arms.items()}
    unscorable = [-1, -1]
    assert right["joint"] == [[1, 1], [1, 1], [0, 0], unscorable]
    assert right["without_hinter"] == [[1, 1], [0, 0], [0, 0], unscorable]
    assert right["ablated_hinter"] == [[0, 0]] * 3 + [unscorable]
    assert right["swapped_hinter"] == [[0, 0]] * 3 + [unscorable]  # 2 for 1, 9 for 2, 4 for 3
    assert right["replaced_hinter"] == [[0, 0], [0, 0], [1, 1], unscorable]
    assert right["single"] == [[0, 0], [1, 1], [0, 0], unscorable]
    assert right["self_consistency"] == [[0], [1], [0], [-1]]
    assert found.arms["joint"].avg.value == pytest.approx(2 / 3) and found.arms["joint"].avg.problems == 3
    assert found.arms["joint"].rates["unscorable"] == 1 / 4
    tokens = {name: arm.tokens for name, arm in found.arms.items()}
    assert tokens["joint"] == tokens["swapped_hinter"] == tokens["self_consistency"] == 2  # as many as the team's
    assert tokens["without_hinter"] == tokens["ablated_hinter"] == tokens["single"] == 1
    assert found.differences["without_hinter"].value == pytest.approx(1 / 3)
    assert found.help["single"].value == pytest.approx(1 / 3) and found.hurt["single"].value == 0
    assert found.hurt["replaced_hinter"].value == pytest.approx(1 / 3)
    assert found.token_ratio == 1 and found.equal_cost and found.left_out == {}
    rows = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert len(rows) == 6 * 4 * 2 + 8 and list(json.loads(rows[0]["texts"])) == ["hinter", "writer"]
    saved = read_json(tmp_path)
    assert saved["settings"]["k"] == 2 and saved["settings"]["team"]["outcome"]["name"] == "outcome"
    assert {"torch", "transformers", "ccpo"} <= set(saved["versions"])
    assert saved["benchmarks"]["four"]["arms"]["joint"]["pass_at"]["2"]["value"] == pytest.approx(2 / 3)


def test_help_and_hurt_are_chances_of_two_independent_samples(tmp_path):
    """Of k = 2, joint right once and alone right once: helped in a quarter of the four pairs."""
    flip = {"joint": ["1", "x"], "alone": ["1", "x"]}

    def alternate(text):
        own = flip["joint" if ":" in text else "alone"]
        own.append(own.pop(0))
        return own[-1]

    team = Team(TEAM, {"hinter": Says(hint), "writer": Says(alternate)}, outcome)
    found = evaluate(team, {"one": PROBLEMS.select([0])}, output_dir=tmp_path, k=2, arms=["without_hinter"])["one"]
    assert found.help["without_hinter"].value == found.hurt["without_hinter"].value == 0.25


def test_a_vote_without_a_voter_draws_nothing(tmp_path):
    """1: yes yes no; 2: yes no other."""
    said = [{"1": "yes", "2": "yes"}, {"1": "yes", "2": "no"}, {"1": "no", "2": "other"}]
    rules = [Says(lambda text, own=own: own[text[0]]) for own in said]
    team = Team(Vote(3, prompt="{problem}?"), dict(zip(Vote(3).role_names, rules, strict=True)), outcome)
    data = Dataset.from_dict({"prompt": ["1", "2"], "solution": ["yes", "yes"]})
    found = evaluate(team, {"two": data}, output_dir=tmp_path)["two"]
    right = {name: arm.right.flatten().tolist() for name, arm in found.arms.items()}
    assert right == {
        "joint": [1, pytest.approx(1 / 3)],
        "without_voter_1": [0.5, 0],
        "without_voter_2": [0.5, 0.5],
        "without_voter_3": [1, 0.5],
    }
    assert [len(rule.prompts) for rule in rules] == [2, 2, 2] and found.arms["without_voter_3"].tokens == (6 + 5) / 2


TEAMS = {
    "chain": TEAM,
    "vote": Vote(3, prompt="{problem}"),
    "mean": AnswerCritiqueRewrite(answer_prompt="{problem}", rewrite_prompt="{problem} {answer} {critique}"),
}


@pytest.mark.parametrize("kind", TEAMS)
def test_it_agrees_with_the_accuracy_of_training(kind, tmp_path):
    def draw():
        made = {}
        for i, role in enumerate(TEAMS[kind].role_names):
            drawn = random.Random(i)
            made[role] = Says(lambda text, drawn=drawn: drawn.choice(["1", "2", r"\boxed{3}", ""]))
        return made

    data = Dataset.from_dict({"prompt": [str(i % 4) for i in range(40)], "solution": ["1", "2", "3", None] * 10})
    judge = MathVerifier()
    team = Team(TEAMS[kind], draw(), judge)
    found = evaluate(team, {"forty": data}, output_dir=tmp_path, arms=[])["forty"].arms["joint"]
    before = evaluate_team(data.remove_columns([]), draw(), judge, topology=TEAMS[kind])
    assert found.avg.value == pytest.approx(before.joint.value) and 0 < found.avg.value < 1
    assert found.right.flatten().tolist() == pytest.approx(list(before.right), nan_ok=True)
    assert found.rates["no_answer"] == pytest.approx(before.no_answer.value)
    assert found.rates["leak"] == pytest.approx(before.leak.value, nan_ok=True)


def test_a_team_of_two_answers_has_no_vote_of_its_samples(tmp_path):
    """The vote would be of one of the two, and its avg@k is of both."""
    topology = TEAMS["mean"]
    team = Team(topology, dict.fromkeys(topology.role_names, Says(lambda text: text.split()[0])), outcome)
    found = evaluate(team, {"four": PROBLEMS}, output_dir=tmp_path, k=2, arms=[])["four"].arms["joint"]
    assert found.maj is None and found.avg.value == 1
    assert "| joint | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | - |" in (tmp_path / "results.md").read_text()


def test_texts_are_swapped_with_the_next_other_problem(tmp_path):
    """Also over the edge of a batch, and past a problem that is asked twice."""
    data = Dataset.from_dict({"prompt": ["1", "1", "2", "4", "5"], "solution": ["1"] * 5})
    team = make_team()
    evaluate(team, {"five": data}, output_dir=tmp_path, batch_size=2, arms=["swapped_hinter"])
    assert team.generate["writer"].prompts[5:] == ["1:2", "1:2", "2:4", "4:5", "5:1"]
    alike = Dataset.from_dict({"prompt": ["1", "1"], "solution": ["1", "1"]})
    found = evaluate(team, {"alike": alike}, output_dir=tmp_path, arms=["swapped_hinter"])["alike"]
    assert list(found.arms) == ["joint"] and "no other problem" in found.left_out["swapped_hinter"]
    assert "*swapped_hinter* was left out" in (tmp_path / "results.md").read_text()


# ---- Self-consistency at equal cost ----


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("problems", "k"), [(20, 2), (64, 4), (150, 1)])
def test_votes_have_the_teams_tokens_within_5_percent(problems, k, seed, tmp_path):
    """Lengths of 1 to 20 letters for each text, and of 1 to 9 for the single policy."""
    drawn = random.Random(seed)
    team = Team(TEAM, dict.fromkeys(TEAM.role_names, Says(lambda text: "x" * drawn.randint(1, 20))), outcome)
    single = Team(Solo(), {"solver": Says(lambda text: "y" * drawn.randint(1, 9))})
    options = {"output_dir": tmp_path, "single": single, "arms": ["self_consistency"], "k": k}
    found = evaluate(team, {"many": numbered(problems)}, **options)["many"]
    assert abs(found.token_ratio - 1) <= 0.05 and found.equal_cost
    assert found.arms["self_consistency"].right.shape == (problems, 1)


def test_self_consistency_that_cannot_be_is_left_out(tmp_path):
    team = make_team()
    long = Team(Solo(), {"solver": Says(lambda text: "a long answer")})
    found = evaluate(team, {"long": PROBLEMS}, output_dir=tmp_path, single=long)["long"]
    assert "one answer of the single model has 13 tokens, more than the team's 2" in found.left_out["self_consistency"]
    assert "self_consistency" not in found.arms and "single" in found.arms
    mute = Team(Solo(), {"solver": lambda prompts: ["2"] * len(prompts)})
    found = evaluate(team, {"mute": PROBLEMS}, output_dir=tmp_path, single=mute)["mute"]
    assert found.left_out["self_consistency"] == "the number of tokens is not known for single"
    team.outcome = lambda prompts, completions, **kwargs: [1.0] * len(completions)
    found = evaluate(team, {"vague": PROBLEMS}, output_dir=tmp_path, single=long)["vague"]
    assert "no `extract` and `equal`" in found.left_out["self_consistency"] and found.arms["joint"].maj is None


def test_another_cost_is_said(tmp_path):
    """Each of two problems gets two votes of two tokens, for a team of five: 4 / 5."""
    team = Team(TEAM, {"hinter": Says(lambda text: "ab"), "writer": Says(lambda text: "cde")}, outcome)
    single = Team(Solo(), {"solver": Says(lambda text: "2", tokens=lambda text: 4)})
    found = evaluate(team, {"two": PROBLEMS.select([0])}, output_dir=tmp_path, single=single)["two"]
    assert found.token_ratio == 0.8 and not found.equal_cost
    assert "with 0.800 times the team's tokens; **not of equal cost**" in (tmp_path / "results.md").read_text()


def test_the_vote_of_samples_by_a_slow_count():
    drawn = random.Random(0)
    groups = []
    for _ in range(200):
        gold = drawn.choice(["a", None])
        answers = [drawn.choice(["a", "b", "c", ""]) for _ in range(drawn.randint(1, 6))]
        groups.append([{"answer": a, "outcome": gold and (1.0 if a == gold else -1.0)} for a in answers])
    found = majority_right(groups, outcome)
    for group, value in zip(groups, found.tolist(), strict=True):
        counts = {row["answer"]: 0 for row in group if row["answer"]}
        for row in group:
            if row["answer"]:
                counts[row["answer"]] += 1
        first = [answer for answer, count in counts.items() if count == max(counts.values())]
        expected = sum(answer == "a" for answer in first) / len(first) if first else 0
        assert value == pytest.approx(expected) if group[0]["outcome"] is not None else torch.tensor(value).isnan()
    assert majority_right(groups, lambda **kwargs: []) is None


# ---- What is kept ----


def test_what_is_done_is_not_drawn_again(tmp_path):
    options = {"output_dir": tmp_path, "batch_size": 2, "arms": ["without_hinter"]}
    first = make_team()
    evaluate(first, {"four": PROBLEMS}, **options)
    table = (tmp_path / "results.md").read_bytes()
    (gone,) = tmp_path.glob("samples/four-without_hinter-00001.parquet")
    gone.unlink()
    again = make_team()
    evaluate(again, {"four": PROBLEMS}, **options)
    assert len(first.generate["writer"].prompts) == 8 and again.generate["writer"].prompts == ["alone 3", "alone 4"]
    assert (tmp_path / "results.md").read_bytes() == table


def test_arms_and_benchmarks_are_added_without_drawing_again(tmp_path):
    evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path, arms=["without_hinter"])
    more = make_team()
    benchmarks = {"four": PROBLEMS, "two": PROBLEMS.select([1, 2])}
    found = evaluate(more, benchmarks, output_dir=tmp_path, arms=["without_hinter", "ablated_hinter"])
    assert set(found["two"].arms) == {"joint", "without_hinter", "ablated_hinter"}
    drawn = more.generate["writer"].prompts
    assert drawn == ["1:", "2:", "3:", "4:", "2:2", "3:9", "alone 2", "alone 3", "2:", "3:"]


def test_other_settings_are_refused_before_anything_is_drawn(tmp_path):
    evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path, arms=[])
    for changed, message in (
        ({"k": 3}, "samples of another evaluation, in four-joint-00000.parquet: `k` was 1 and is 3. Set it back"),
        ({"seed": 1}, "`seed` was 0 and is 1"),
        ({"batch_size": 3}, "`batch_size` was 64 and is 3"),
        ({"settings": {"k": 1}}, "`settings` was None and is {'k': 1}"),
        ({"settings": {"seed": 0}, "seed": 1}, "`seed` was 0 and is 1"),
        ({"max_problems": 3}, "`problems` was 'rows 0 to 3, checksum .*' and is 'rows 0 to 2, .*`max_problems`"),
    ):
        team = make_team()
        with pytest.raises(ValueError, match=message):
            evaluate(team, {"four": PROBLEMS}, output_dir=tmp_path, **{"arms": ["without_hinter"], **changed})
        assert team.generate["hinter"].prompts == []
    other = Chain(
        [TEAM["hinter"], Role("writer", reads=("hinter",), prompt="{problem};{hinter}", prompt_without=WITHOUT)]
    )
    with pytest.raises(ValueError, match="`topology.roles` was"):
        evaluate(
            Team(other, make_team().generate, outcome),
            {"four": PROBLEMS},
            output_dir=tmp_path,
            arms=["without_hinter"],
        )


def test_a_foreign_or_damaged_file_is_named(tmp_path):
    evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path, arms=[])
    file = tmp_path / "samples" / "four-joint-00000.parquet"
    whole = file.read_bytes()
    for content in (b"", b"not parquet", whole[:500]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="four-joint-00000.parquet cannot be read as samples .* Delete it, and"):
            evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path, arms=[])
    pq.write_table(pq.read_table(tmp_path / "samples.parquet"), file)  # no settings in it
    with pytest.raises(ValueError, match="cannot be read as samples"):
        evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path, arms=[])


@contextmanager
def largest_file(size):
    """As on a disk that is full after so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path):
    drawn = random.Random(0)
    texts = {"3": "".join(chr(drawn.randint(33, 0x4000)) for _ in range(60_000))}  # as good as incompressible
    make = lambda: Team(Solo(), {"solver": Says(lambda text: texts.get(text, text))}, outcome)  # noqa: E731
    options = {"output_dir": tmp_path, "batch_size": 2}
    with largest_file(50_000), pytest.raises(OSError, match=r"four-joint-00001.parquet cannot be written \(File too"):
        evaluate(make(), {"four": PROBLEMS}, **options)
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["four-joint-00000.parquet"]
    team = make()
    evaluate(team, {"four": PROBLEMS}, **options)
    assert team.generate["solver"].prompts == ["3", "4"] and (tmp_path / "results.json").is_file()


def test_an_endpoint_that_fails_on_the_way(tmp_path):
    """Its second batch fails on one prompt: the error says whose, where and how many; the first batch is kept."""
    broken = [True]

    def respond(number, body):
        text = body["prompt"]
        if broken[0] and text.startswith("3"):
            return 500, {"error": {"message": "out of memory"}}
        choice = {"text": text[0], "finish_reason": "length" if text[0] == "2" else "stop"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": 5}}

    def make(url):
        writer = OpenAIGenerator("m", url, max_retries=0, max_concurrency=2)
        return Team(TEAM, {"hinter": Says(hint), "writer": writer}, outcome)

    options = {"output_dir": tmp_path, "batch_size": 2, "arms": []}
    with FaultyEndpoint(respond) as endpoint:
        with pytest.raises(RuntimeError) as error:
            evaluate(make(endpoint.base_url), {"four": PROBLEMS}, **options)
        said = str(error.value)
        assert endpoint.base_url in said and "out of memory" in said
        assert re.search("Of 2 prompts, [01] were answered, 1 failed, and [01] were not asked", said)
        assert "the generator of ['writer']" in error.value.__notes__[0]
        broken[0] = False
        asked = len(endpoint.requests)
        found = evaluate(make(endpoint.base_url), {"four": PROBLEMS}, **options)["four"]
        assert len(endpoint.requests) - asked == 2
    assert found.arms["joint"].avg.value == 1 and found.arms["joint"].tokens == 6
    assert found.arms["joint"].rates["truncated"] == 1 / 4


def test_an_endpoint_that_fails_in_a_batch_loses_no_reply_that_was_finished(tmp_path):
    """Of 6 problems, twice each, two at a time: the eighth request fails, and the three parts before are kept."""
    broken, reply = [True], {"choices": [{"text": "1", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}

    def respond(number, body):
        return (500, {"error": {"message": "gone"}}) if broken[0] and number == 7 else (200, reply)

    def draw(url, concurrency):
        solver = OpenAIGenerator("m", url, max_retries=0, max_concurrency=concurrency)
        return evaluate(Team(Solo(), {"solver": solver}, outcome), {"six": numbered(6)}, output_dir=tmp_path, k=2)

    with FaultyEndpoint(respond) as endpoint:
        with pytest.raises(RuntimeError, match="gone"):
            draw(endpoint.base_url, 2)
        asked, broken[0] = len(endpoint.requests), False
        found = draw(endpoint.base_url, 4)["six"].arms["joint"]  # however many at a time
        prompts = [body["prompt"] for _, _, body in endpoint.requests[asked:]]
    assert sorted(prompts) == ["3", "3", "4", "4", "5", "5"]
    assert found.right.sum().item() == 2 and found.right.shape == (6, 2)
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["six-joint-00000.parquet"]


def test_a_generator_of_ones_own_may_be_a_dataclass(tmp_path):
    @dataclass
    class Mine:
        model: object = None

        def __call__(self, prompts):
            return ["1"] * len(prompts)

    team = Team(Solo(), {"solver": Mine()}, outcome)
    assert evaluate(team, {"four": PROBLEMS}, output_dir=tmp_path)["four"].arms["joint"].avg.value == 1 / 3


def test_a_generator_may_count_with_numpy(tmp_path):
    solver = Says(lambda text: "1", tokens=lambda text: np.int64(3))
    found = evaluate(Team(Solo(), {"solver": solver}, outcome), {"four": PROBLEMS}, output_dir=tmp_path)["four"]
    assert found.arms["joint"].tokens == 3


# ---- What cannot be ----


@pytest.mark.parametrize(
    ("problems", "options", "error", "message"),
    [
        (["1", "2"], {"batch_size": -1}, ValueError, "batch_size must be an integer from 1 to inf, got -1"),
        (["1", "2"], {"batch_size": 0}, ValueError, "batch_size must be an integer from 1 to inf, got 0"),
        (["1", None], {}, TypeError, r"prompts\[1\] must be a text or a non-empty list of messages, got None"),
        ([1, 2], {}, TypeError, r"prompts\[0\] must be a text or a non-empty list of messages, got 1"),
    ],
)
def test_what_a_team_cannot_answer(problems, options, error, message):
    with pytest.raises(error, match=message):
        make_team()(problems, **options)


def test_what_cannot_be(tmp_path):
    team, options = make_team(), {"output_dir": tmp_path / "out"}
    with pytest.raises(
        ValueError,
        match=r"`arms` .* has \['without_nobody'\], which this team does not have. It has \['joint', 'without_hinter'",
    ):
        evaluate(team, {"four": PROBLEMS}, arms=["without_nobody"], **options)
    with pytest.raises(ValueError, match="`single` and `self_consistency` need one model"):
        evaluate(team, {"four": PROBLEMS}, arms=["single"], **options)
    with pytest.raises(ValueError, match="`single` must be a team of one role"):
        evaluate(team, {"four": PROBLEMS}, single=team, **options)
    with pytest.raises(
        ValueError,
        match=r"`swaps` names 'nobody', which is not a role of the team. Its roles are \['hinter', 'writer'\]",
    ):
        evaluate(team, {"four": PROBLEMS}, swaps={"nobody": Says(hint)}, **options)
    for wrong in (0, -1, 1.0, "2", True, None):
        with pytest.raises(ValueError, match="`k` must be an integer of at least 1, got"):
            evaluate(team, {"four": PROBLEMS}, k=wrong, **options)
    for wrong in (-1, 1.5, "0", True, None):
        with pytest.raises(ValueError, match="`seed` must be an integer of at least 0, got"):
            evaluate(team, {"four": PROBLEMS}, seed=wrong, **options)
    with pytest.raises(
        ValueError,
        match=r"`benchmarks` names 'MATH501', which is unknown. Did you mean `MATH500`\? Known are \['MATH500'",
    ):
        evaluate(team, ["MATH501"], **options)
    with pytest.raises(ValueError, match="`benchmarks` is empty"):
        evaluate(team, [], **options)
    with pytest.raises(ValueError, match="must be a datasets.Dataset of at least one row with the column 'prompt'"):
        evaluate(team, {"x": PROBLEMS.rename_column("prompt", "problem")}, **options)
    strict = Team(TEAM, team.generate)
    with pytest.raises(
        ValueError, match="has no column 'solution', which MathVerifier compares answers with. Its columns are"
    ):
        evaluate(strict, {"x": PROBLEMS.rename_column("solution", "gold")}, **options)
    for judged, columns, message in (
        (team, {"prompt": ["1", None]}, r"`benchmarks\['x'\]`: prompts\[1\] must be a text or a .* got None"),
        (team, {"prompt": [1]}, r"`benchmarks\['x'\]`: prompts\[0\] must be a text or a .* got 1"),
        (
            team,
            {"prompt": ["1"], "completions": ["a"]},
            r"has the columns \['completions'\], but the outcome function gets",
        ),
        (
            strict,
            {"prompt": ["1", "2"], "solution": [1.5, None]},
            "has the solution 1.5, but MathVerifier needs texts",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(judged, {"x": Dataset.from_dict(columns)}, **options)
    file = tmp_path / "problems.jsonl"
    file.write_text('{"problem": "1", "gold": "1"}\n')
    with pytest.raises(ValueError, match="`solution_column='answer'` is not a column of"):
        evaluate(team, [f"{file}:problem:answer"], **options)
    with pytest.raises(ValueError, match=r"`benchmarks` has \['problems'\] twice"):
        evaluate(team, [f"{file}:problem:gold"] * 2, **options)
    assert not list((tmp_path / "out").glob("samples/*")) and team.generate["hinter"].prompts == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`output_dir=.*cannot be created as a folder"):
        evaluate(team, {"four": PROBLEMS}, output_dir=tmp_path / "file")


def test_benchmarks_of_one_file(tmp_path):
    team = make_team()
    with pytest.raises(ValueError, match=r"`benchmarks` has \['d 1', 'd_1'\].* same files"):
        evaluate(team, {"d 1": PROBLEMS, "other": PROBLEMS, "d_1": PROBLEMS}, output_dir=tmp_path)
    assert team.generate["hinter"].prompts == []


def test_only_the_main_process_evaluates(tmp_path, monkeypatch):
    """Every one would write the same files."""
    second = SimpleNamespace(is_main_process=False, process_index=1, num_processes=2)
    monkeypatch.setattr("ccpo.evaluation.suite.PartialState", lambda: second, raising=False)
    with pytest.raises(ValueError, match="`evaluate` is called in process 1 of 2.* Call it only in the main process"):
        evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vote_shows_the_plurality():
    rules = {f"voter_{i}": Says(lambda text, i=i: "no" if i == 1 else "yes") for i in (1, 2, 3)}
    (answer,) = Team(Vote(3), rules, outcome)(["?"])
    assert (answer.text, answer.role, answer.tokens) == ("yes", "voter_2", 8)
    assert answer.texts == {"voter_1": "no", "voter_2": "yes", "voter_3": "yes"}


# ---- With models ----


def judge(prompts, completions, **kwargs):
    return [1.0 if "1" in completion[0]["content"] else -1.0 for completion in completions]


judge.extract, judge.equal = outcome.extract, outcome.equal


def chat_problems():
    prompts = [[{"role": "user", "content": text}] for text in "1234"]
    return Dataset.from_dict({"prompt": prompts, "solution": list("1234")})


def tiny_team(model_dirs, **options):
    sampling = {"max_new_tokens": 6, **options}
    made = {
        "thinker": TransformersGenerator(model_dirs["qwen3"], **sampling),
        "solver": TransformersGenerator(model_dirs["llama"], **sampling),
    }
    return Team(ThinkSolve(), made, judge)


def test_a_tiny_team_twice_and_interrupted(model_dirs, tmp_path):
    """The same seed gives the same samples, also where a batch was lost on the way."""
    tables = []
    for name in ("whole", "again", "broken"):
        single = Team(Solo(), {"solver": TransformersGenerator(model_dirs["llama"], max_new_tokens=5)})
        options = {"output_dir": tmp_path / name, "k": 2, "batch_size": 2, "seed": 3, "single": single}
        evaluate(tiny_team(model_dirs), {"four": chat_problems()}, **options)
        if name == "broken":
            for file in (tmp_path / name / "samples").glob("*0001.parquet"):
                file.unlink()
            evaluate(tiny_team(model_dirs), {"four": chat_problems()}, **options)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        tables.append([(file.name, file.read_bytes()) for file in files])
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) > 3 + 2 * 6


def test_the_sampling_and_the_weights_are_among_the_settings(model_dirs, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_dirs["qwen3"], folder)
    dirs, options = {**model_dirs, "qwen3": str(folder)}, {"output_dir": tmp_path / "out", "arms": []}
    evaluate(tiny_team(dirs), {"four": chat_problems()}, **options)
    with pytest.raises(ValueError, match="`generators.thinker.temperature` was 1.0 and is 0.5"):
        evaluate(tiny_team(dirs, temperature=0.5), {"four": chat_problems()}, **options)
    evaluate(tiny_team(model_dirs), {"four": chat_problems()}, **options)  # the same model elsewhere
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="`generators.thinker.weights` was"):
        evaluate(tiny_team(dirs), {"four": chat_problems()}, **options)
    settings = read_json(tmp_path / "out")["settings"]["team"]["generators"]["thinker"]
    assert settings["model"] == model_dirs["qwen3"] and settings["max_new_tokens"] == 6 and "api_key" not in settings


def test_every_column_that_the_outcome_gets_is_among_the_settings(tmp_path):
    data = PROBLEMS.add_column("level", [1, 2, 3, 4])
    evaluate(make_team(), {"four": data}, output_dir=tmp_path, arms=[])
    evaluate(make_team(), {"four": data.select_columns(["level", "prompt", "solution"])}, output_dir=tmp_path, arms=[])
    harder = PROBLEMS.add_column("level", [1, 2, 3, 5])
    with pytest.raises(ValueError, match="`problems` was 'rows 0 to 3, checksum"):
        evaluate(make_team(), {"four": harder}, output_dir=tmp_path, arms=[])


def differs(first, second):
    return find_difference(identity(plain(describe_generator(first))), identity(plain(describe_generator(second))))


def test_what_was_loaded_how_is_among_the_settings(model_dirs, tmp_path, monkeypatch):
    def load(**options):
        return Team.from_models(model_dirs["qwen3"], Solo(), model_init_kwargs=options).generate["solver"]

    name, was, now = differs(load(dtype="float32"), load(dtype=torch.bfloat16))
    assert (name, was, now) == ("model_init_kwargs.dtype", "float32", "torch.bfloat16")
    assert differs(load(token="a"), load(token="b")) is None  # a secret
    named = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    other = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    make = lambda model, tokenizer: TransformersGenerator(model, tokenizer)  # noqa: E731
    assert differs(make(model_dirs["qwen3"], named), make(model_dirs["qwen3"], other)) is None
    other.chat_template = "{{ messages }}"
    assert differs(make(model_dirs["qwen3"], named), make(model_dirs["qwen3"], other))[0] == "tokenizer_checksum"
    assert differs(make("hub/id", named), make("hub/id", other))[0] == "tokenizer_checksum"

    def adapted(active, **generation):
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"]), LoraConfig(r=2), "a")
        model.add_adapter("b", LoraConfig(r=2))
        model.set_adapter(active)
        model.generation_config.update(**generation)
        return make(model, named)

    assert differs(adapted("a"), adapted("a")) is None
    assert differs(adapted("a"), adapted("b"))[0] == "adapters"
    assert differs(adapted("a"), adapted("a", min_p=0.5))[0] == "generation_config.min_p"
    for base in ("one", "two"):
        (tmp_path / base).mkdir()
        (tmp_path / base / "ccpo_base.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert differs(*(VLLMGenerator(str(tmp_path / base)) for base in ("one", "two")))[0] == "weights"
    here = describe_generator(OpenAIGenerator("m"))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1")
    assert here["base_url"] is None and describe_generator(OpenAIGenerator("m"))["base_url"] == "http://elsewhere/v1"
