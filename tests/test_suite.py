"""The evaluation's arms and tables: with generators whose answers are known, and with a real tiny team."""

import random

import pytest
from datasets import Dataset

from ccpo import Chain, Role, Solo, ThinkSolve, TransformersGenerator, Vote
from ccpo.evaluation import Team, evaluate
from ccpo.generation import Completion


class Says:
    """A generator of a rule: prompt text -> text; it counts its prompts, and its tokens are letters."""

    def __init__(self, rule):
        self.rule, self.prompts = rule, []

    def generate(self, prompts):
        self.prompts += prompts
        texts = [self.rule(prompt if isinstance(prompt, str) else prompt[-1]["content"]) for prompt in prompts]
        return [Completion(text, len(text), False) for text in texts]

    def __call__(self, prompts):
        return [completion.text for completion in self.generate(prompts)]


def outcome(prompts, completions, solution, **kwargs):
    return [None if s is None else 1.0 if c.strip() == s else -1.0 for c, s in zip(completions, solution, strict=True)]


outcome.extract = lambda text: text.strip() or None
outcome.equal = lambda a, b: a == b
PROBLEMS = Dataset.from_dict({"prompt": ["1", "2", "3", "4"], "solution": ["1", "2", "3", None]})
TEAM = Chain(
    [
        Role("hinter", prompt="hint {problem}"),
        Role(
            "writer",
            reads=("hinter",),
            prompt="{problem}:{hinter}",
            prompt_without={"hinter": "alone {problem}"},
        ),
    ]
)


def make_team():
    """The hinter says the answer but for 3; the writer repeats it, and knows 1 alone."""
    hinter = Says(lambda text: "9" if text.endswith("3") else text.split()[-1])
    writer = Says(lambda text: text.split(":")[1] or "?" if ":" in text else "1")
    return Team(TEAM, {"hinter": hinter, "writer": writer}, outcome)


def test_every_arm_by_hand(tmp_path):
    single = Team(Solo(), {"solver": Says(lambda text: "2")}, outcome)
    found = evaluate(make_team(), {"four": PROBLEMS}, output_dir=tmp_path, k=2, single=single)["four"]
    right = {name: arm.right.nan_to_num(nan=-1).tolist() for name, arm in found.arms.items()}
    unscorable = [-1, -1]
    assert right["joint"] == [[1, 1], [1, 1], [0, 0], unscorable]
    assert right["without_hinter"] == [[1, 1], [0, 0], [0, 0], unscorable]
    assert right["ablated_hinter"] == [[0, 0]] * 3 + [unscorable]
    assert right["swapped_hinter"] == [[0, 0]] * 3 + [unscorable]  # 2 for 1, 9 for 2, 4 for 3
    assert right["single"] == [[0, 0], [1, 1], [0, 0], unscorable]
    assert right["self_consistency"] == [[0], [1], [0], [-1]]
    assert found.arms["joint"].avg.value == pytest.approx(2 / 3) and found.arms["joint"].avg.problems == 3
    assert found.arms["joint"].rates["unscorable"] == 1 / 4
    assert found.arms["joint"].tokens == 2 and found.arms["single"].tokens == 1
    assert found.arms["self_consistency"].tokens == 2  # as many as the team's
    assert found.differences["without_hinter"].value == pytest.approx(1 / 3)
    assert found.help["single"].value == pytest.approx(1 / 3) and found.hurt["single"].value == 0


def test_what_is_done_is_not_drawn_again(tmp_path):
    first = make_team()
    evaluate(first, {"four": PROBLEMS}, output_dir=tmp_path, batch_size=2, arms=["without_hinter"])
    (gone,) = tmp_path.glob("samples/four-without_hinter-00001.parquet")
    gone.unlink()
    again = make_team()
    evaluate(again, {"four": PROBLEMS}, output_dir=tmp_path, batch_size=2, arms=["without_hinter"])
    assert len(first.generate["writer"].prompts) == 8 and again.generate["writer"].prompts == ["alone 3", "alone 4"]
    with pytest.raises(ValueError, match="samples of another evaluation: `k` was 1 and is 3"):
        evaluate(again, {"four": PROBLEMS}, output_dir=tmp_path, batch_size=2, k=3, arms=["without_hinter"])


def test_votes_have_the_teams_tokens(tmp_path):
    """A team of 7 tokens and a policy of 2: three and a half answers for each problem."""
    team = Team(TEAM, {"hinter": Says(lambda text: "abcde"), "writer": Says(lambda text: "fg")}, outcome)
    single = Team(Solo(), {"solver": Says(lambda text: random.choice(["hi", "jk"]))}, outcome)
    data = Dataset.from_dict({"prompt": [str(i) for i in range(10)], "solution": ["hi"] * 10})
    found = evaluate(team, {"ten": data}, output_dir=tmp_path, single=single, arms=["self_consistency"])["ten"]
    assert found.arms["self_consistency"].tokens == found.arms["joint"].tokens == 7
    assert len(single.generate["solver"].prompts) == 10 + 35


def test_what_cannot_be(tmp_path):
    team, options = make_team(), {"output_dir": tmp_path / "out"}
    with pytest.raises(
        ValueError, match=r"`arms` has \['without_nobody'\]; this team has \['joint', 'without_hinter'"
    ):
        evaluate(team, {"four": PROBLEMS}, arms=["without_nobody"], **options)
    with pytest.raises(ValueError, match="`single` needs a policy"):
        evaluate(team, {"four": PROBLEMS}, arms=["single"], **options)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1, got 0"):
        evaluate(team, {"four": PROBLEMS}, k=0, **options)
    with pytest.raises(ValueError, match=r"`benchmarks` names 'MATH501'; known are \['MATH500', 'GSM8K'"):
        evaluate(team, ["MATH501"], **options)
    with pytest.raises(ValueError, match="`swapped_hinter` needs at least two problems in a batch, got 1"):
        evaluate(team, {"four": PROBLEMS}, batch_size=1, arms=["swapped_hinter"], output_dir=tmp_path / "one")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`output_dir=.*cannot be written"):
        evaluate(team, {"four": PROBLEMS}, output_dir=tmp_path / "file")
    with pytest.raises(ValueError, match="has no team.json: it is not the folder of a trained team"):
        Team.from_pretrained(tmp_path)


def test_a_vote_shows_the_plurality():
    rules = {f"voter_{i}": Says(lambda text, i=i: "no" if i == 1 else "yes") for i in (1, 2, 3)}
    (answer,) = Team(Vote(3), rules, outcome)(["?"])
    assert (answer.text, answer.role, answer.tokens) == ("yes", "voter_2", 8)
    assert answer.texts == {"voter_1": "no", "voter_2": "yes", "voter_3": "yes"}


def test_a_tiny_team_twice_and_interrupted(model_dirs, tmp_path):
    """The same seed gives the same samples, also where a batch was lost on the way."""
    tables = []
    for name in ("whole", "again", "broken"):
        generate = {
            "thinker": TransformersGenerator(model_dirs["qwen3"], max_new_tokens=6),
            "solver": TransformersGenerator(model_dirs["llama"], max_new_tokens=6),
        }
        team = Team(ThinkSolve(), generate, outcome)
        options = {"output_dir": tmp_path / name, "k": 2, "batch_size": 2, "seed": 3}
        data = {
            "four": Dataset.from_dict(
                {"prompt": [[{"role": "user", "content": p}] for p in "1234"], "solution": list("1234")}
            )
        }
        judge = lambda prompts, completions, **kwargs: [1.0 if "1" in c[0]["content"] else -1.0 for c in completions]  # noqa: E731
        team.outcome = judge
        evaluate(team, data, **options)
        if name == "broken":
            for file in (tmp_path / name / "samples").glob("*0001.parquet"):
                file.unlink()
            evaluate(team, data, **options)
        files = sorted((tmp_path / name / "samples").glob("*.parquet"))
        tables.append([(file.name, file.read_bytes()) for file in files])
    assert tables[0] == tables[1] == tables[2]
    assert len({content for _, content in tables[0]}) == len(tables[0]) > 6
