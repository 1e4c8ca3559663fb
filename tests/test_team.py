"""`Team`: from the folder of a run, from models, with adapters on one base; and the command line of an evaluation."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from openai_server import FaultyEndpoint
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo import AnswerCritiqueRewrite, Role, SharedCredit, Solo, ThinkSolve, Topology, Vote
from ccpo.evaluation import Team, TeamAnswer, evaluate
from ccpo.evaluation.__main__ import parse_arguments, run
from ccpo.evaluation.arms import alone
from ccpo.evaluation.benchmarks import BENCHMARKS, find_benchmark, load_benchmark
from ccpo.evaluation.loading import find_defect
from ccpo.generation import TransformersGenerator, VLLMGenerator
from ccpo.tasks import TASKS
from ccpo.team.prompts import default_prompt
from ccpo.training.trainer import MultiAgentGRPOTrainer

PROBLEMS = [[{"role": "user", "content": f"{i} + 1"}] for i in range(3)]
GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


def save_team(folder, topology, models, **run):
    """What a run leaves."""
    for agent, model in models.items():
        shutil.copytree(model, folder if topology.is_solo else folder / agent, dirs_exist_ok=True)
    folder.mkdir(exist_ok=True)
    (folder / "team.json").write_text(json.dumps({**topology.to_dict(), "run": run}))
    return folder


@pytest.fixture
def run_folder(model_dirs, tmp_path):
    models = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
    sampling = {"thinker": {"max_new_tokens": 3}, "solver": {"max_new_tokens": 5, "temperature": 0.5}}
    return save_team(tmp_path / "out", ThinkSolve(), models, sampling=sampling, answer_pattern="=(.+)")


@pytest.fixture
def adapters(model_dirs, tmp_path):
    """Two adapters that change something, and a folder that plays their base."""
    tokenizer = AutoTokenizer.from_pretrained(model_dirs["qwen3"])
    for i, name in enumerate("ab"):
        torch.manual_seed(i)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dirs["qwen3"]), config)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "ccpo_base.json").write_text(json.dumps({"base_model_name_or_path": model_dirs["qwen3"]}))
    return {name: str(tmp_path / name) for name in ("a", "b", "base")}


# ---- Folders ----


def test_a_run_is_sampled_as_it_was_trained(run_folder):
    team = Team.from_pretrained(run_folder, seed=3)
    thinker, solver = team.generate["thinker"], team.generate["solver"]
    assert (thinker.max_new_tokens, solver.max_new_tokens, solver.temperature) == (3, 5, 0.5)
    assert team.outcome.extract("so =7") == "7" and thinker.seed != solver.seed
    (first, *_), again = team(PROBLEMS), Team.from_pretrained(run_folder, seed=3)(PROBLEMS)
    assert isinstance(first, TeamAnswer) and first == again[0] and list(first.texts) == ["thinker", "solver"]
    hotter = Team.from_pretrained(run_folder, generate={"thinker": len}, temperature=2.0)
    assert hotter.generate["solver"].temperature == 2.0 and hotter.generate["thinker"] is len


def test_what_a_trainer_saved_answers(model_dirs, chat_dataset, make_config, outcome, tmp_path):
    """One role's model stands in the folder itself."""
    args = make_config(max_steps=1, output_dir=str(tmp_path / "solo"), max_completion_length=4)
    trainer = MultiAgentGRPOTrainer(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset, topology=Solo())
    trainer.save_model(args.output_dir)
    team = Team.from_pretrained(args.output_dir, temperature=0.0)
    assert team.topology.is_solo and team.generate["solver"].max_new_tokens == 4
    expected = TransformersGenerator(args.output_dir, temperature=0.0, max_new_tokens=4)(PROBLEMS)
    assert [answer.text for answer in team(PROBLEMS)] == expected
    engine = Team.from_pretrained(args.output_dir, backend="vllm", temperature=0.0).generate["solver"]
    assert isinstance(engine, VLLMGenerator) and engine.max_new_tokens == 4  # which caches prefixes by itself


def test_a_run_that_is_half_written(run_folder):
    weights = run_folder / "solver" / "model.safetensors"
    whole = weights.read_bytes()
    for size in (len(whole) - 1, 400, 4, 0):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"agent 'solver' is not whole: .*model.safetensors has {size} bytes"):
            Team.from_pretrained(run_folder)
    weights.unlink()
    with pytest.raises(ValueError, match="agent 'solver' is not whole: .* has no weights"):
        Team.from_pretrained(run_folder)
    index = run_folder / "solver" / "model.safetensors.index.json"
    weights.with_name("model-1.safetensors").write_bytes(whole)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"names \['model-2.safetensors'\], which are missing"):
        Team.from_pretrained(run_folder)
    (run_folder / "solver" / "config.json").unlink()
    with pytest.raises(ValueError, match="neither config.json nor adapter_config.json"):
        Team.from_pretrained(run_folder)
    shutil.rmtree(run_folder / "solver")
    with pytest.raises(ValueError, match="has no folder of the agent 'solver': the save was cut short"):
        Team.from_pretrained(run_folder)
    team_file = run_folder / "team.json"
    team_file.write_text(team_file.read_text()[:40])
    with pytest.raises(ValueError, match="team.json cannot be read as a team"):
        Team.from_pretrained(run_folder)
    (run_folder / "checkpoint-20").mkdir()
    team_file.rename(run_folder / "checkpoint-20" / "team.json")
    with pytest.raises(ValueError, match="has no team.json: .* It has .*checkpoint-20"):
        Team.from_pretrained(run_folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
def test_a_part_of_a_model_that_is_half_written(run_folder, name):
    file = run_folder / "solver" / name
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x00\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"agent 'solver' is not whole: .*solver/{name} is cut short, or no JSON"):
            Team.from_pretrained(run_folder)


def test_a_model_without_a_tokenizer(run_folder):
    for file in (run_folder / "solver").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="agent 'solver' is not whole: .*solver has no tokenizer"):
        Team.from_pretrained(run_folder)
    (run_folder / "solver" / "tekken.json").write_text("{}")  # Mistral's own
    assert find_defect(run_folder / "solver") is None


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ([1], "'list' object has no attribute 'get'"),
        ({"sampling": None}, "'NoneType' object has no attribute 'items'"),
        ({"sampling": {"solver": 5}}, "'int' object is not iterable"),
        ({"sampling": {"solver": {"heat": 1}}}, r"`sampling` has \['heat'\], which are no arguments"),
        ({"answer_pattern": 5}, "`answer_pattern` is no text, but 5"),
    ],
)
def test_how_a_run_sampled_cannot_be_read(run_folder, run, message):
    file = run_folder / "team.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "run": run}))
    with pytest.raises(ValueError, match=f"team.json cannot be read as a team .{message}.*Save the team again"):
        Team.from_pretrained(run_folder)


def test_a_role_without_a_chat_template(run_folder, model_dirs, tmp_path):
    config = run_folder / "solver" / "chat_template.jinja"
    config.unlink()
    data = Dataset.from_dict({"prompt": PROBLEMS, "solution": ["1", "2", "3"]})
    with pytest.raises(ValueError, match="is a conversation and the tokenizer has no chat template") as error:
        Team.from_pretrained(run_folder)(PROBLEMS)
    assert "solver" in error.value.__notes__[0] and "thinker" not in error.value.__notes__[0]
    with pytest.raises(ValueError, match="has no chat template") as error:
        evaluate(run_folder, {"x": data}, output_dir=tmp_path / "evaluation")
    assert error.value.__notes__ == ["It was the generator of ['solver']."]
    assert not list((tmp_path / "evaluation" / "samples").iterdir())


# ---- Models ----


def test_models_by_name(model_dirs):
    team = Team.from_models(model_dirs["qwen3"], "think_solve", **GREEDY)
    assert team.generate["thinker"] is team.generate["solver"]  # one call for both
    two = Team.from_models({"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}, ThinkSolve(), **GREEDY)
    assert team(PROBLEMS)[0].texts["thinker"] == two(PROBLEMS)[0].texts["thinker"]
    assert team(PROBLEMS[0]).texts["solver"] != two(PROBLEMS[0]).texts["solver"]
    for wrong, message in (
        ({"thinker": "x"}, r"The agents \['solver'\] have no model"),
        ({"thinker": "x", "writer": "y"}, r"There is no role or agent \['writer'\]; the team has the roles"),
    ):
        with pytest.raises(ValueError, match=message):
            Team.from_models(wrong, "think_solve")
    with pytest.raises(ValueError, match=r"`backend` must be one of \['transformers', 'vllm'\], got 'tgi'"):
        Team.from_models(model_dirs["qwen3"], "think_solve", backend="tgi")


@pytest.mark.parametrize("caching", [False, True])
def test_adapters_share_one_base(adapters, model_dirs, caching, monkeypatch):
    """Each agent plays its adapter, whoever spoke before, and one without plays the base; it is loaded once."""
    loaded = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda name, **options: loaded.append(name) or load(name, **options)
    )
    topology = Topology(
        tuple(Role(name, judged=True, states_answer=True, prompt="{problem}") for name in ("first", "second", "third"))
    )
    models = dict(zip(topology.agents, (adapters["a"], adapters["b"], adapters["base"]), strict=True))
    team = Team.from_models(models, topology, prefix_caching=caching, **GREEDY)
    for _ in range(2):
        answers = team(PROBLEMS)
    assert loaded == [model_dirs["qwen3"]]
    for role, model in (("first", adapters["a"]), ("second", adapters["b"]), ("third", model_dirs["qwen3"])):
        prompts = [answer.prompts[role] for answer in answers]
        assert [answer.texts[role] for answer in answers] == TransformersGenerator(model, **GREEDY)(prompts)
    assert len({answers[0].texts[role] for role in topology.role_names}) == 3


def test_a_role_that_answers_alone():
    (solver,) = alone(ThinkSolve()).roles
    assert solver.prompt == ThinkSolve().solo_prompt and not solver.reads
    assert alone(Vote(3, prompt="vote {problem}")).roles[0].prompt == "vote {problem}"
    assert alone(Solo()).is_solo
    assert alone(Solo("say {problem}")).roles[0].prompt == "say {problem}"
    (answer,) = alone(AnswerCritiqueRewrite(answer_prompt="first {problem}")).roles
    assert (answer.name, answer.prompt) == ("answer_a", "first {problem}")


def test_a_role_that_answers_alone_is_asked_for_nobody():
    """By default prompts of three roles; of templates of one's own, there is none without two."""
    names = ("planner", "adder", "solver")
    three = Topology((Role("planner"), Role("adder"), Role("solver", reads=("planner", "adder"))))
    (solver,) = alone(three).roles
    assert solver.prompt == default_prompt("solver", (), True) and not solver.reads
    left = three.reduced("planner")["solver"].prompt_without
    assert left == {"adder": solver.prompt}
    own = {"planner": "{problem} {adder}", "adder": "{problem} {planner}"}
    last = Role("solver", reads=names[:2], prompt="{problem} {planner} {adder}", prompt_without=own)
    bound = Topology((Role("planner"), Role("adder"), last))
    assert bound.reduced("planner")["solver"].prompt_without == {}
    with pytest.raises(ValueError, match="does not say how one of its roles answers alone.* Give `single`"):
        alone(bound)


# ---- Benchmarks ----


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_on_a_local_copy(name, tmp_path):
    benchmark = BENCHMARKS[name]
    row = {benchmark.problem_column: "Which?", benchmark.solution_column: "1", "solution": "a proof", "id": 7}
    if benchmark.options_column:
        row |= {benchmark.context_column: "All sleep.", benchmark.options_column: ["None.", "Tom."], "answer": 1}
    (tmp_path / "copy.jsonl").write_text(json.dumps(row) + "\n")
    for spelled in (name, name.lower().replace(" ", "-")):
        found, problems = load_benchmark(f"{spelled}={tmp_path / 'copy.jsonl'}")
        assert found == name and problems["solution"] == ["B" if benchmark.options_column else "1"]
        said = problems[0]["prompt"][0]["content"]
        assert said == ("All sleep.\n\nWhich?\nA. None.\nB. Tom." if benchmark.options_column else "Which?")


@pytest.mark.parametrize("answer", ["B", "b", "1", 1, " B. ", 25])
def test_the_answer_among_options(answer, tmp_path):
    options = [f"option {i}" for i in range(26)]
    row = {"question": "Which?", "text": "All sleep.", "options": options, "answer": answer}
    (tmp_path / "copy.jsonl").write_text(json.dumps(row) + "\n")
    _, problems = load_benchmark(f"LogiQA={tmp_path / 'copy.jsonl'}")
    assert problems["solution"] == ["Z" if answer == 25 else "B"]


@pytest.mark.parametrize("answer", [30, "30", -1, "C", "both"])
def test_no_answer_among_options(answer, tmp_path):
    row = {"question": "Which?", "text": "All sleep.", "options": ["None.", "Tom."]}
    rows = [{**row, "answer": "1"}, {**row, "answer": str(answer)}]
    (tmp_path / "copy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"Row 1 of .*copy.jsonl.*`answer='{answer}'`.*0 to 1.*A to B"):
        load_benchmark(f"LogiQA={tmp_path / 'copy.jsonl'}")


def test_more_options_than_letters(tmp_path):
    row = {"question": "Which?", "text": "All sleep.", "options": ["Tom."] * 27, "answer": 1}
    (tmp_path / "copy.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="Row 0 of .*copy.jsonl.* has 27 `options`, and there are 26 letters"):
        load_benchmark(f"LogiQA={tmp_path / 'copy.jsonl'}")


@pytest.mark.parametrize("options", [None, [], ["one"], "abc", ["a", None]])
def test_options_that_are_none(options, tmp_path):
    row = {"question": "Which?", "text": "All sleep.", "options": options, "answer": 0}
    (tmp_path / "copy.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="Row 0 of .*copy.jsonl.* has `options=.*`: it must be a list of two texts"):
        load_benchmark(f"LogiQA={tmp_path / 'copy.jsonl'}")


def test_a_question_without_a_context(tmp_path):
    row = {"question": "Which?", "text": None, "options": ["None.", "Tom."], "answer": 0}
    (tmp_path / "copy.jsonl").write_text(json.dumps(row) + "\n")
    _, problems = load_benchmark(f"LogiQA={tmp_path / 'copy.jsonl'}", conversational=False)
    assert problems["prompt"] == ["Which?\nA. None.\nB. Tom."]


# ---- The command line ----


@pytest.fixture
def problem_file(tmp_path):
    rows = [{"question": f"{i} + 1", "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{tmp_path / 'sums.jsonl'}:question:answer"


def command(*words):
    return run(parse_arguments([str(word) for word in words]))


def test_one_command_for_a_run_and_for_models(run_folder, model_dirs, problem_file, tmp_path):
    out = tmp_path / "evaluation"
    words = ["--benchmarks", problem_file, "--output_dir", out, "--single", model_dirs["llama"], "--k", 2]
    said = command(run_folder, *words, "--swap", f"thinker={model_dirs['llama']}", "--top_p", 0.9)
    assert said == command(run_folder, *words, "--swap", f"thinker={model_dirs['llama']}", "--top_p", 0.9)
    for part in ("## sums", "| without_thinker |", "| replaced_thinker |", "| single |", str(out / "results.json")):
        assert part in said
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["team"]["generators"]["solver"]["top_p"] == 0.9
    (role,) = settings["single"]["generators"].values()
    assert role["max_new_tokens"] == 3 + 5  # room for all that the team writes
    (asked,) = settings["single"]["topology"]["roles"]
    assert (asked["name"], asked["prompt"]) == ("solver", ThinkSolve().solo_prompt)
    assert f"*single* is asked {ThinkSolve().solo_prompt!r}, with room for 8 tokens." in said
    words[words.index(out)], prompt = tmp_path / "asked", tmp_path / "prompt.txt"
    prompt.write_text("go: {problem}\n")
    said = command(run_folder, *words, "--single_prompt", prompt, "--arms", "single")
    assert "*single* is asked 'go: {problem}', with room for 8 tokens." in said
    words = ["--benchmarks", problem_file, "--output_dir", tmp_path / "other", "--max_new_tokens", 4]
    said = command("--models", model_dirs["qwen3"], "--topology", "{kind: vote, num_voters: 2}", *words)
    assert "| without_voter_2 |" in said


def test_command_lines_that_cannot_be(run_folder, model_dirs, problem_file, tmp_path):
    rest = ["--benchmarks", problem_file, "--output_dir", tmp_path / "evaluation"]
    model = model_dirs["qwen3"]
    for words, message in (
        ([], "Give a run's folder, or `--models` and `--topology`"),
        ([run_folder, "--models", model], "one of the two"),
        (["--models", model], "needs `--topology`"),
        (["--models", model, "--topology", "ring"], "`topology` must be of a kind in"),
        (["--models", model, "--topology", "{a"], "`--topology` cannot be read as YAML"),
        ([run_folder, "--swap", "thinker"], r"`--swap` must be ROLE=VALUE, got \['thinker'\]"),
        (["--models", f"solver={model}", "solver=x", "--topology", "solo"], r"`--models` names \['solver'\] twice"),
        ([run_folder, "--single", model, "--single_prompt", "go" * 200], "must contain {problem}, got 'gogo"),
        (["--models", model, "--topology", "{roles: [" + "{name: a}, " * 40 + "]}"], "`roles`"),
        ([run_folder, "--swap", f"nobody={model}"], "`--swap` names 'nobody'"),
        ([run_folder, "--endpoint", "solver=m"], "`--endpoint solver=m` must be ROLE=MODEL@URL"),
        ([run_folder, "--endpoint", "solver=@http://x/v1"], "must be ROLE=MODEL@URL"),
        ([run_folder, "--endpoint", "nobody=m@http://x/v1"], r"`--endpoint` names \['nobody'\]"),
        ([run_folder, "--endpoint", "solver=m@ftp://x"], "base_url must look like"),
        ([run_folder, "--single_prompt", "{problem}"], "`--single_prompt` is of a model in `--single`"),
        ([run_folder, "--single", run_folder, "--single_prompt", "{problem}"], "is of a model in `--single`"),
        ([run_folder, "--single", model, "--single_prompt", "go"], "must contain {problem}, got 'go'"),
        ([run_folder, "--k", 0], "`k` must be an integer of at least 1"),
        ([run_folder, "--arms", "alone"], r"`arms` has \['alone'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            command(*words, *rest)


def test_an_endpoint_is_sampled_as_its_role(run_folder, problem_file, tmp_path):
    answer = {"choices": [{"message": {"content": "=2"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    with FaultyEndpoint(lambda number, body: (200, answer)) as endpoint:
        words = ["--endpoint", f"solver=org/m@{endpoint.base_url}", "--benchmarks", problem_file, "--arms", "joint"]
        said = command(run_folder, *words, "--output_dir", tmp_path / "evaluation")
    _, path, body = endpoint.requests[0]
    assert path.endswith("/chat/completions") and (body["model"], body["max_tokens"]) == ("org/m", 5)
    assert body["temperature"] == 0.5 and "| joint | 0.250" in said
    assert not {"stop", "top_k", "repetition_penalty", "chat_template_kwargs"} & body.keys()
    file = run_folder / "team.json"
    saved = json.loads(file.read_text())
    own = {"stop_strings": ["\n"], "min_p": 0.1, "repetition_penalty": 1.0}
    saved["run"]["sampling"]["solver"] |= {
        "generation_kwargs": own,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    file.write_text(json.dumps(saved))
    with FaultyEndpoint(lambda number, body: (200, answer)) as endpoint:
        words[1] = f"solver=org/m@{endpoint.base_url}"
        command(run_folder, *words, "--output_dir", tmp_path / "other")
    body = endpoint.requests[0][2]
    assert (body["stop"], body["min_p"], body["chat_template_kwargs"]) == (["\n"], 0.1, {"enable_thinking": False})
    assert "repetition_penalty" not in body
    own["num_beams"] = 2
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"samples 'solver' with \['num_beams'\], which endpoints do not know"):
        command(run_folder, *words, "--output_dir", tmp_path / "third")


# ---- The page ----


def page_blocks(language):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_commands_on_the_page_are_read():
    lines = "".join(page_blocks("bash")).replace("\\\n", " ").splitlines()
    assert len(lines) == 3
    for words in map(shlex.split, lines):
        assert words[:2] == ["ccpo", "evaluate"]
        for benchmark in parse_arguments(words[2:]).benchmarks:
            assert benchmark in TASKS or find_benchmark(benchmark)


def test_the_code_on_the_page_runs(run_folder, problem_file, tmp_path, monkeypatch):
    """On another run's folder, and a local copy of a benchmark."""
    (code,) = page_blocks("python")
    names = {"outputs/demo": str(run_folder), '"MATH500", "GSM8K"': f'"GSM8K={problem_file.split(":")[0]}"'}
    for name, local in names.items():
        assert name in code
        code = code.replace(name, local)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert "## GSM8K" in (tmp_path / "outputs" / "evaluation" / "results.md").read_text()
