"""Stop strings in training: completions end with them, and count as ended."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import make_tokenizer

from ccpo import MultiAgentGRPOTrainer, Solo, ThinkSolve, TransformersGenerator
from ccpo.generation.stops import EndedIds, cut_at_stop
from ccpo.team.rollout import run_team
from ccpo.training.generator import PolicyGenerator
from ccpo.training.team_file import generator_options

torch.set_num_threads(1)
STOPS = list("aeiou"), list("0123456789")  # often sampled by a random model


@pytest.mark.parametrize(
    ("stops", "expected", "stopped"),
    [
        (["b"], "ab", True),
        (["cd", "bc"], "abc", True),  # the first that is complete, not the first of the list
        (["d"], "abcd", True),
        (["x"], "abcd", False),
        ([], "abcd", False),
    ],
)
def test_cut_at_stop(stops, expected, stopped):
    tokenizer = make_tokenizer()
    ids = tokenizer("abcd", add_special_tokens=False)["input_ids"] + [tokenizer.pad_token_id] * 2
    cut, was_stopped = cut_at_stop(ids, tokenizer, stops)
    assert was_stopped == stopped
    assert tokenizer.decode(cut, skip_special_tokens=True) == expected
    assert stopped == (len(cut) < len(ids))  # what fills the batch up is TRL's to cut where nothing stopped


def test_a_stop_string_may_begin_in_the_prompt():
    tokenizer = make_tokenizer()
    prompt, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("x;", ";ab"))
    assert cut_at_stop(ids, tokenizer, [";;"], prompt) == (ids[:1], True)
    assert cut_at_stop(ids, tokenizer, ["x;", "b"], prompt) == (ids, True)  # the prompt's own stops nothing


def test_an_ended_completion_is_itself_but_for_its_end():
    ids = EndedIds([5, 6, 7], end=2)
    assert ids[-1] == 2 and ids == [5, 6, 7] and ids[:-1] == [5, 6] and ids[2] == 7 and list(ids) == [5, 6, 7]
    assert torch.tensor([ids]).tolist() == [[5, 6, 7]] == torch.tensor([ids[:]]).tolist()


class Recorded(MultiAgentGRPOTrainer):
    """Keeps what the loss gets."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batches = [
            *getattr(self, "batches", []),
            {name: x.clone() for name, x in inputs.items() if x is not None},
        ]
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("sharing", ["separate", "solo"])
@pytest.mark.parametrize("masks", [False, True])
def test_completions_end_with_a_stop_string_and_count_as_ended(
    sharing, masks, model_dirs, make_config, text_dataset, outcome
):
    def own(kind, stops):  # a random model samples the pad token, too, with which a completion counts as ended
        return {"stop_strings": stops, "suppress_tokens": [make_tokenizer(kind=kind).pad_token_id]}

    kwargs = {"max_steps": 1, "max_completion_length": 6, "mask_truncated_completions": masks}
    kwargs |= {"generation_kwargs": own("llama", STOPS[0])}
    models = model_dirs["llama"]
    if sharing == "separate":
        models = {"thinker": model_dirs["qwen3"], "solver": model_dirs["llama"]}
        kwargs |= {"schedule": "joint", "role_kwargs": {"thinker": {"generation_kwargs": own("qwen3", STOPS[1])}}}
    topology = Solo() if sharing == "solo" else None
    trainer = Recorded(models, outcome, make_config(**kwargs), text_dataset, topology=topology)
    trainer.train()

    for role in trainer.roles:
        prefix = "" if sharing == "solo" else f"{role}/"
        stops = STOPS[1] if role == "thinker" else STOPS[0]
        tokenizer = trainer.tokenizers[trainer.topology.agent_of(role)]
        ended = []
        for batch in trainer.batches:
            for ids, mask in zip(
                *(batch[f"{prefix}completion_{name}"].flatten(0, -2) for name in ("ids", "mask")), strict=True
            ):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                assert not any(stop in text[:-1] for stop in stops)
                stopped = text[-1:] in stops
                at_end = tokenizer.eos_token_id in ids or tokenizer.convert_tokens_to_ids("~") in ids
                ended.append(stopped or at_end)
                whole = stopped or at_end or not masks
                assert mask.any() == whole
                assert not stopped or tokenizer.decode(ids[mask.bool()])[-1] in stops  # nothing behind it counts
        assert 0 < sum(ended) < len(ended)
        row = next(row for row in trainer.state.log_history if f"{prefix}completions/clipped_ratio" in row)
        assert row[f"{prefix}completions/clipped_ratio"] == pytest.approx(1 - sum(ended) / len(ended))


def test_a_saved_role_stops_as_in_training(model_dirs, make_config):
    args = make_config(generation_kwargs={"stop_strings": STOPS[0]}, max_completion_length=24)
    options = generator_options(args, "solver", "solver")
    generator = TransformersGenerator(model_dirs["llama"], seed=0, **options)
    drawn = generator.generate(["Say it: "] * 8)
    texts = [completion.text for completion in drawn]
    assert not any(stop in text[:-1] for text in texts for stop in STOPS[0])
    ended = [text[-1:] in STOPS[0] for text in texts]
    assert any(ended) and not any(c.truncated for c, end in zip(drawn, ended, strict=True) if end)
    assert [c.tokens for c, end in zip(drawn, ended, strict=True) if end] == [
        len(text) for text, end in zip(texts, ended, strict=True) if end
    ]


def test_continuous_batching_does_not_know_them(model_dirs, make_config, text_dataset, outcome):
    args = make_config(generation_kwargs={"stop_strings": "x"}, use_transformers_continuous_batching=True)
    with pytest.raises(ValueError, match=r"has the stop strings \['x'\], which transformers' continuous batching"):
        MultiAgentGRPOTrainer(model_dirs["llama"], outcome, args, text_dataset)


def test_vllm_gets_them_under_its_own_name(make_config):
    args = make_config(use_vllm=True, generation_kwargs={"stop_strings": ["x"]})
    assert args.generation_kwargs == {"stop": ["x"]}
    assert generator_options(args, "solver", "solver")["generation_kwargs"] == {
        "stop_strings": ["x"],
        "repetition_penalty": 1.0,
    }
    with pytest.raises(ValueError, match="has both 'stop_strings' and 'stop'"):
        make_config(use_vllm=True, generation_kwargs={"stop_strings": ["x"], "stop": ["y"]})


def test_a_text_is_read_without_the_token_that_ended_it():
    """
    A newline as an end token is no special token, and a role's text goes into another's prompt, on one line. It is
    judged as TRL decodes it.
    """
    tokenizer = make_tokenizer()
    a, b, end = tokenizer("abc", add_special_tokens=False)["input_ids"]
    eos = [end, tokenizer.eos_token_id]
    trainer = SimpleNamespace(as_role=lambda role: nullcontext(), eos_token_ids=eos, processing_class=tokenizer)
    generate = PolicyGenerator(trainer, "thinker")
    assert generate.ends == ("c",)
    said = {"abc": "ab", "ab": "ab", "c": "", "": "", "acb": "acb", "abcc": "abc"}

    class Speaks:
        ends = generate.ends

        def __call__(self, prompts):
            return list(said)

    read = []
    speakers = {"thinker": Speaks(), "solver": lambda prompts: read.extend(prompts) or ["9"] * len(prompts)}
    team = ThinkSolve(thinker_prompt="{problem}", solver_prompt="{problem}[{thought}]", solo_prompt="{problem}")
    episodes = run_team(team, ["1"] * len(said), speakers)
    assert read == [f"1[{text}]" for text in said.values()]
    assert episodes.said["thinker"].texts == list(said)
