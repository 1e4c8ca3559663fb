"""Chat templates are asked before anything loads; one that refuses a system message gets it in the user's."""

import logging

import pytest
from conftest import CHAT_TEMPLATE, make_model, make_tokenizer
from datasets import Dataset
from jinja2 import TemplateError

from ccpo import CounterfactualCredit, MultiAgentGRPOTrainer, SharedCredit, Solo, ThinkSolve, TransformersGenerator
from ccpo.evaluation import evaluate_team
from ccpo.generation.inputs import fold_system, render_prompts
from ccpo.team.prompts import whole_characters
from ccpo.team.rollout import run_team

# Gemma's refuses a system message, Mistral's wants turns to alternate; the last refuses all.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)
MISTRAL = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)
NOTHING = "{{ raise_exception('not today') }}"
TEAM = ThinkSolve(thinker_prompt="T {problem}", solver_prompt="S {problem}|{thought}", solo_prompt="A {problem}")
SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1="}
FOLDED = "<user>Be kind.\n\n{}</s><assistant>"


# ---- The fold ----


@pytest.mark.parametrize(
    ("messages", "folded"),
    [
        ("su", "(s)\n\nu"),
        ("u", "u"),
        ("ssu", "(s)\n\n(s)\n\nu"),
        ("suau", "(s)\n\nu a u"),  # the user's that comes next, alone
        ("uasu", "u a (s)\n\nu"),
        ("sausu", "a (s)\n\nu (s)\n\nu"),
    ],
)
def test_the_system_s_text_goes_before_the_user_s(messages, folded):
    said = {"s": ("system", "(s)"), "u": ("user", "u"), "a": ("assistant", "a")}
    prompt = [dict(zip(("role", "content"), said[letter], strict=True)) for letter in messages]
    result = fold_system(prompt)
    assert " ".join(message["content"] for message in result) == folded
    assert "system" not in {message["role"] for message in result}
    assert prompt == [dict(zip(("role", "content"), said[letter], strict=True)) for letter in messages]


def test_what_is_not_folded():
    for prompt in ("text", [USER], [SYSTEM], [USER, SYSTEM], [{"role": "system", "content": None}, USER]):
        assert fold_system(prompt) == prompt
    assert fold_system([{"role": "system", "content": " "}, USER]) == [USER]
    named = {**USER, "name": "Ann"}
    assert fold_system([SYSTEM, named]) == [{**named, "content": "Be kind.\n\n1+1="}]


def test_each_prompt_is_rendered_in_the_form_that_is_taken(caplog):
    """What becomes of a prompt does not depend on the others in the call."""

    def render(prompts):
        for prompt in prompts:
            if [m["role"] for m in prompt][:2] == ["system", "system"]:
                raise TemplateError("one system message at most")  # as `raise_exception` of a chat template does
        return ["+".join(m["content"] for m in prompt) for prompt in prompts]

    said = set()
    prompts = [[SYSTEM, USER], [SYSTEM, SYSTEM, USER], [USER]]
    expected = ["Be kind.+1+1=", "Be kind.\n\nBe kind.\n\n1+1=", "1+1="]
    for _ in range(2):
        assert render_prompts(prompts, render, "role 'x'", said) == expected
    assert render_prompts(prompts[::2], render, "role 'y'", said) == expected[::2]
    assert said == {"role 'x'"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "The chat template of role 'x' refuses a system message. Its text is put before the "
        "user's, with a blank line between."
    )


def test_an_error_that_is_no_template_s_stays():
    def render(prompts):
        raise TypeError("no text")

    with pytest.raises(TypeError, match="^no text$"):
        render_prompts(["a", "b"], render, "role 'x'", set())


# ---- Before anything loads ----


def save(folder, template, weights=True):
    tokenizer = make_tokenizer(kind="llama")
    tokenizer.chat_template = template
    make_model("llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors") if not weights else ():
        file.unlink()  # whatever loads the model fails
    return str(folder)


def even(completions, **kwargs):
    return [1.0 if len(str(c)) % 2 else -1.0 for c in completions]


def rows(*prompts):
    return Dataset.from_list([{"prompt": prompts[i % len(prompts)], "solution": "2"} for i in range(8)])


class Watched(MultiAgentGRPOTrainer):
    def _log_rollout(self, rollout, rewards, advantages):
        self.rollout = rollout
        super()._log_rollout(rollout, rewards, advantages)


@pytest.mark.parametrize("template", [GEMMA, MISTRAL], ids=["gemma", "mistral"])
def test_a_template_that_refuses_a_system_message(template, tmp_path, make_config, caplog):
    model = save(tmp_path, template)
    args = make_config(policy_sharing="shared", schedule="joint", max_steps=2)
    trainer = Watched(model, CounterfactualCredit(even), args, rows([SYSTEM, USER]), topology=TEAM)
    trainer.train()
    said, samples = trainer.rollout.episodes.said, trainer.rollout.samples
    decode = trainer.processing_class.batch_decode
    assert set(decode([ids for ids, _, _ in samples["thinker"]])) == {FOLDED.format("T 1+1=")}
    views = [trainer.rollout.episodes.view("thinker", text) for text in said["thinker"].texts]
    asked = decode([ids for ids, _, _ in samples["solver"]])
    assert asked == [FOLDED.format(f"S 1+1=|{view}") for view in views]
    assert said["solver"].prompts[0][0] == SYSTEM  # the fold is the template's affair
    messages = [record.getMessage() for record in caplog.records if "system message" in record.getMessage()]
    assert [message.split(" refuses")[0] for message in messages] == [
        f"The chat template of role '{role}'" for role in ("thinker", "solver")
    ]


def test_only_the_role_whose_template_refuses(tmp_path, make_config, caplog):
    models = {"thinker": save(tmp_path / "a", CHAT_TEMPLATE), "solver": save(tmp_path / "b", GEMMA)}
    args = make_config(schedule="joint", max_steps=1)
    trainer = Watched(models, CounterfactualCredit(even), args, rows([SYSTEM, USER]), topology=TEAM)
    assert trainer.folded == {"role 'solver'"}
    trainer.train()
    decode = trainer.processing_class.batch_decode
    asked = {role: decode([ids for ids, _, _ in samples])[0] for role, samples in trainer.rollout.samples.items()}
    assert asked["thinker"] == "<system>Be kind.</s><user>T 1+1=</s><assistant>"
    assert asked["solver"].startswith("<user>Be kind.\n\nS 1+1=|")
    assert sum("system message" in record.getMessage() for record in caplog.records) == 1


def test_a_template_that_takes_all_is_left_alone(tmp_path, make_config, caplog):
    caplog.set_level(logging.INFO, "ccpo")
    args = make_config(policy_sharing="shared", max_steps=1)
    trainer = Watched(save(tmp_path, CHAT_TEMPLATE), CounterfactualCredit(even), args, rows([SYSTEM, USER]))
    assert trainer.folded == set()
    assert not any("template" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("topology", [TEAM, Solo()], ids=["team", "solo"])
def test_a_template_that_fails_on_anything(topology, tmp_path, make_config):
    role, credit = topology.role_names[0], SharedCredit(even)
    model = save(tmp_path, NOTHING, weights=False)
    with pytest.raises(
        ValueError,
        match=f"The chat template of role '{role}' cannot render row 0 of `train_dataset` .*Error: not today.*Set "
        "another template as `tokenizer.chat_template`, change the messages, or give text prompts",
    ):
        Watched(model, credit, make_config(), rows([USER]), topology=topology)


def test_the_row_that_a_template_refuses(tmp_path, make_config):
    """Of each order of messages one row is rendered, and what is refused both ways is named."""
    model = save(tmp_path, MISTRAL, weights=False)
    good, bad = [SYSTEM, USER], [SYSTEM, USER, USER]
    for name in ("train_dataset", "eval_dataset"):
        datasets = {"train_dataset": rows(good), name: rows(good, good, good, bad)}
        with pytest.raises(ValueError, match=f"role 'thinker' cannot render row 3 of `{name}`.*must alternate"):
            Watched(model, SharedCredit(even), make_config(), datasets["train_dataset"], datasets.get("eval_dataset"))


def test_templates_are_none_of_a_text_s_business(tmp_path, make_config):
    MultiAgentGRPOTrainer(save(tmp_path, NOTHING), SharedCredit(even), make_config(), rows("1+1="))


def test_one_role_gets_the_fold_too(tmp_path, make_config, caplog):
    class Kept(MultiAgentGRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            self.asked = set(self.processing_class.batch_decode(prompt_ids))
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    args = make_config(max_steps=2)
    trainer = Kept(save(tmp_path, GEMMA), SharedCredit(even), args, rows([SYSTEM, USER]), topology=Solo())
    trainer.train()
    assert trainer.asked == {FOLDED.format("1+1=")}
    assert sum("system message" in record.getMessage() for record in caplog.records) == 1


def test_what_a_stream_brings_later(tmp_path, make_config, caplog):
    """The first batch has no system message; what comes then is folded all the same, and said."""
    stream = Dataset.from_list(
        [{"prompt": [USER] if i < 1 else [SYSTEM, USER]} for i in range(4)]
    ).to_iterable_dataset()
    args = make_config(schedule="joint", max_steps=4)
    trainer = Watched(save(tmp_path, GEMMA), CounterfactualCredit(even), args, stream, topology=TEAM)
    assert trainer.folded == set()
    trainer.train()
    assert trainer.folded == {"role 'thinker'", "role 'solver'"}
    assert sum("system message" in record.getMessage() for record in caplog.records) == 2


# ---- A local model ----


def test_a_local_model_gets_the_fold(tmp_path, caplog):
    generator = TransformersGenerator(save(tmp_path, GEMMA), max_new_tokens=4)
    tokenizer = generator._load()[1]
    assert tokenizer.batch_decode(generator._ids([[SYSTEM, USER], "text"])) == [FOLDED.format("1+1="), "text"]
    result = evaluate_team(rows([SYSTEM, USER]), dict.fromkeys(("thinker", "solver"), generator), even)
    assert result.joint.total == 8
    assert sum("system message" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(
        ValueError, match=r"of TransformersGenerator.* cannot render prompts\[1\], \[\{'role': 'system'"
    ):
        generator([[USER], [SYSTEM]])


# ---- Texts that a role reads ----


@pytest.mark.parametrize(
    "thought",
    [
        "",
        "\ud83d and \udc00",
        "{{ 1 / 0 }} {% raise %} {problem} {thinker} {solver}",
        "</s><assistant><user>",
        "\x00\x07\u2028\u202e",
        "x" * 100_000,
    ],
    ids=["empty", "surrogates", "jinja", "special", "control", "long"],
)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
def test_a_thought_may_be_anything(thought, chat, tmp_path):
    solver = TransformersGenerator(save(tmp_path, GEMMA), max_new_tokens=4)
    prompt = [SYSTEM, USER] if chat else "1+1="
    episodes = run_team(TEAM, [prompt], {"thinker": lambda prompts: [thought], "solver": solver})
    asked = episodes.said["solver"].prompts[0]
    read = (asked[1]["content"] if chat else asked).removeprefix("S 1+1=|")
    assert whole_characters(thought).startswith(read)
    assert episodes.said["solver"].cut == [len(thought) > 5000]
    assert episodes.said["thinker"].texts == [thought]


def test_characters_that_are_none():
    assert whole_characters("aß漢🙂") == "aß漢🙂"
    assert whole_characters("a\ud83db") == "a\ufffdb"
    assert whole_characters("\ud83d\ude42") == "🙂"  # two halves of one
    assert whole_characters("\udc00") == "\ufffd"
