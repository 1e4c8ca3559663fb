"""One role: TRL's tools, environments and rollout functions pass through, and train as in stock TRL, to the bit."""

import pytest
import torch
from conftest import make_model, make_tokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from ccpo import MultiAgentGRPOTrainer, Solo

CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
calls = []
torch.set_num_threads(1)


def multiply(a: int, b: int) -> int:
    """
    Multiplies two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        The product.
    """
    calls.append((a, b))
    return a * b


async def multiply_later(a: int, b: int) -> int:
    """
    Multiplies two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        The product.
    """
    return multiply(a, b)


multiply_later.__name__ = "multiply"


class Calculator:
    """An environment with one tool, which judges by what was asked of it."""

    def reset(self, **kwargs):
        self.asked = 0
        return "How much is 3 times 4?"

    def multiply(self, a: int, b: int) -> int:
        """
        Multiplies two numbers.

        Args:
            a: The first number.
            b: The second number.

        Returns:
            The product.
        """
        self.asked += 1
        return multiply(a, b)

    def get_reward(self):
        return 1.0 if self.asked == 1 else -1.0


def length_reward(completions, **kwargs):
    return [float(sum(len(str(message)) for message in completion) % 7) for completion in completions]


def replay(prompts, trainer):
    """A rollout function of a user's own: canned completions, and a column for the reward function."""
    ids = trainer.processing_class.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
    drawn = [[10 + i % 5, 11, trainer.processing_class.eos_token_id] for i in range(len(prompts))]
    return {
        "prompt_ids": ids,
        "completion_ids": drawn,
        "logprobs": None,
        "marks": [float(i % 3) for i in range(len(ids))],
    }


def marks_reward(marks, **kwargs):
    return marks


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory):
    """A model whose tokenizer has a tool call for a token, so that even a random one makes real calls."""
    folder = tmp_path_factory.mktemp("tools")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([CALL])
    tokenizer.chat_template = qwen3_chat_template
    make_model("qwen3", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bias = {"sequence_bias": [[[tokenizer.convert_tokens_to_ids(CALL)], 20.0], [[tokenizer.eos_token_id], 20.0]]}
    return str(folder), bias


@pytest.mark.parametrize(
    ("episode", "reward", "dataset"),
    [
        ({"tools": [multiply]}, length_reward, True),
        ({"tools": [multiply_later]}, length_reward, True),
        ({"environment_factory": Calculator}, None, False),
        ({"environment_factory": Calculator}, length_reward, True),
        ({"rollout_func": replay}, marks_reward, True),
    ],
    ids=["tools", "async tools", "environment", "environment and data", "rollout"],
)
def test_episodes_of_one_role_are_trls_own(episode, reward, dataset, tool_model, chat_dataset, make_config):
    path, bias = tool_model
    settings = {"max_steps": 3, "temperature": 1.0, "max_completion_length": 256, "generation_kwargs": bias}
    settings["scale_rewards"] = "none"
    runs, made = [], []
    for cls, kind, kwargs in (
        (GRPOTrainer, GRPOConfig, {}),
        (MultiAgentGRPOTrainer, None, {"topology": Solo()}),
    ):
        args = make_config(kind, **settings) if kind else make_config(**settings)
        calls.clear()
        trainer = cls(
            model=path,
            reward_funcs=reward,
            args=args,
            train_dataset=chat_dataset if dataset else None,
            **episode,
            **kwargs,
        )
        trainer.train()
        runs.append(trainer)
        made.append(list(calls))
    stock, ours = runs
    if "rollout_func" not in episode:
        assert made[0] and made[0] == made[1]
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(parameter, stock.model.get_parameter(name)), name
    assert any(row.get("grad_norm") for row in stock.state.log_history)
    keys = {key for row in stock.state.log_history for key in row if not key.endswith(("time", "runtime", "second"))}
    for mine, theirs in zip(ours.state.log_history, stock.state.log_history, strict=True):
        assert {key: mine.get(key) for key in keys} == {key: theirs.get(key) for key in keys}


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_episodes_of_a_team_are_its_passes(name, model_dirs, chat_dataset, make_config, outcome):
    with pytest.raises(ValueError, match=rf"`{name}` is not supported with several roles .*`topology=Solo\(\)`"):
        MultiAgentGRPOTrainer(
            model_dirs["qwen3"],
            outcome,
            make_config(),
            chat_dataset,
            **{name: [multiply] if name == "tools" else replay},
        )
