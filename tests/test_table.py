"""The completions table of a team: its columns, its files, what is printed."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from test_trainer import train

from ccpo import SelfEvaluatedCredit, SharedCredit


def twice(values: Iterable) -> list:
    """Each thought's value, for its two answers."""
    return [value for value in values for _ in range(2)]


def test_completions_table_has_what_the_report_shows(model_dirs, chat_dataset, make_config, outcome, capsys):
    """Gold, prompts, what was cut, outcomes without a role, ratings and replies; and it fits a terminal."""
    args = make_config(schedule="joint", log_completions=True, num_completions_to_print=2, max_steps=1, num_solves=2)
    args.removal_eval_steps, args.num_solos = 1, 2
    credit = SelfEvaluatedCredit(outcome, rating_max_tokens=4, rating_prompt="{role} {outcome}")
    trainer, _ = train(model_dirs["qwen3"], credit, args, chat_dataset)
    table = pd.read_parquet(f"{args.output_dir}/completions/completions_00001.parquet")
    rollout = trainer.seen[0][0]
    episodes, seen = rollout.episodes, rollout.outcomes[0]
    (number,) = {prompt[-1]["content"] for prompt in episodes.prompts}
    assert set(table["problem"]) == {number} and set(table["solution"]) == {str(int(number[0]) + 1)}
    assert table["solver_prompt"].tolist() == [prompt[-1]["content"] for prompt in episodes.said["solver"].prompts]
    assert table["thinker_prompt"].tolist() == [
        p[-1]["content"] for p in episodes.said["thinker"].prompts for _ in "12"
    ]
    ends = (trainer.tokenizers["solver"].eos_token_id, trainer.tokenizers["solver"].pad_token_id)
    assert table["solver_truncated"].tolist() == [ids[-1] not in ends for _, ids, _ in rollout.samples["solver"]]
    assert table["thinker_leaked"].tolist() == twice(episodes.leaked)
    texts, b = episodes.without["thinker"]["solver"].texts, seen.without["thinker"].flatten().tolist()
    counted = [text for text, counts in zip(texts, rollout.counted["thinker"], strict=True) if counts]
    assert table["solo_answer"].tolist() == [text for text in counted for _ in range(4)]  # two passes, eight leaves
    assert table["without_thinker_outcome"].tolist() == [value for value in b for _ in range(4)]
    effects = {(1, -1): "helped", (-1, 1): "hurt", (1, 1): "both right", (-1, -1): "both wrong"}
    pairs = zip(table["outcome"], table["without_thinker_outcome"], strict=True)
    assert table["thinker_effect"].tolist() == [effects[pair] for pair in pairs]
    assert table["solver_rating"].tolist() == episodes.ratings["solver"] and table["solver_shares"].isna().all()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("╭", "│", "╰"))]
    assert max(map(len, lines)) <= 80 and sum("episode" in line for line in lines) == 2
    shown = "\n".join(lines)
    assert "step 1, episode 5 of 8" in shown and "without thinker" in shown and "gold" in shown


def test_a_batch_is_in_one_table_and_an_evaluation_in_another(model_dirs, chat_dataset, make_config, outcome):
    """Also where a batch is trained in two steps; TRL's evaluation would write over the step's table."""
    args = make_config(
        schedule="joint", log_completions=True, num_completions_to_print=0, max_steps=4, num_iterations=2
    )
    args.eval_strategy, args.eval_steps, args.per_device_eval_batch_size = "steps", 2, 4
    trainer, _ = train(model_dirs["qwen3"], SharedCredit(outcome), args, chat_dataset, eval_dataset=chat_dataset)
    files = sorted(path.name for path in Path(args.output_dir, "completions").iterdir())
    steps = {"completions": (1, 3), "eval_completions": (2, 4)}
    assert files == [f"{name}_{step:05d}.parquet" for name, numbers in steps.items() for step in numbers]
    rows = [rollout for rollout, *_ in trainer.seen]
    for step in (1, 3):
        table = pd.read_parquet(f"{args.output_dir}/completions/completions_{step:05d}.parquet")
        assert table["joint_answer"].tolist() in [rollout.episodes.answers for rollout in rows]


def test_texts_that_no_file_can_hold_are_mended(model_dirs, chat_dataset, make_config):
    def judge(prompts, completions, log_extra=None, **kwargs):
        log_extra("odd", ["\ud800 half"] * len(completions))
        log_extra("kinds", [[1, {"a": None}]] * len(completions))
        log_extra("read", [3, "x + 1", None, True])
        log_extra("huge", [10**30] * len(completions))  # what was read of an answer
        log_extra("number", list(torch.arange(len(completions)) / 2))
        return [1.0] * len(completions)

    args = make_config(max_steps=1, log_completions=True, num_completions_to_print=0)
    train(model_dirs["qwen3"], SharedCredit(judge), args, chat_dataset)
    table = pd.read_parquet(f"{args.output_dir}/completions/completions_00001.parquet")
    assert set(table["odd"]) == {"\ufffd half"} and set(table["kinds"]) == {'[1, {"a": null}]'}
    assert {"3", "x + 1", "true"} <= set(table["read"]) and set(table["huge"]) == {str(10**30)}
    assert table["number"].dtype == float and table["number"].max() > 0
