"""
SEPO's ratings: a choice among nine replies against free text, and reading the prompt once against nine times.

    python benchmarks/ratings.py [--turns 5] [--episodes 16]

Two tiny random policies rate the same episodes, with one answer each. They do so with `rating_mode="constrained"`
(the scores of the nine allowed replies) and with `"generate"` (up to `rating_max_tokens` = 512 tokens, which are then
read), in turn. Their tokenizer is byte-level BPE, trained here on the package's own text, with one token for every
digit. With one token per character, the constrained reply would be longer than real ones are. Figures are medians
over the turns:

- `token_ratio`: tokens that free text generates, divided by the tokens that decide one constrained rating, as
  `rollout/rating_tokens` counts them. `token_ratio_all_choices` divides by the tokens of all nine replies that are
  scored. Random policies write up to the limit, so these figures are the largest possible ones.
  `token_ratio_of_json_alone` is for a policy that replies with the JSON object and stops.
- `seconds_ratio`: seconds of the ratings of both roles, free text divided by constrained.
- `valid_rate`: the share of constrained ratings that can be read. `free_valid_rate`: the same for free text.
- `prefix_sharing_speedup`: the time to score prompt and choice in full for each of the nine choices, divided by the
  time of our scoring. Ours reads the prompt and the common beginning of the choices once. `prefix_sharing_difference`
  is the difference between the scores of both ways.

Writes `outputs/bench/ratings.json`.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging
from trl.trainer.utils import pad

import ccpo
from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer, SelfEvaluatedCredit
from ccpo.ratings import MAX_RATING_TOKENS, PAIRS, rating_choices
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.team.rollout import Episodes, run_team
from ccpo.team.topology import ThinkSolve
from ccpo.training.generator import PolicyGenerator

ROLES = ("thinker", "solver")
VERDICTS = ("wrong", "correct")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,048 tokens over the sources of the package; every digit is a token of its own."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((path.read_text() for path in sorted(Path(ccpo.__file__).parent.rglob("*.py"))), trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=4096, **special)


def judge(prompts, completions, **kwargs):
    return [1.0] * len(completions)


def build_trainer(options: argparse.Namespace, folder: str) -> MultiAgentGRPOTrainer:
    tokenizer = build_tokenizer()
    args = MultiAgentGRPOConfig(
        folder,
        per_device_train_batch_size=options.episodes,
        num_generations=4,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=options.cpu,
        disable_tqdm=True,
    )
    return MultiAgentGRPOTrainer(
        {role: arithmetic.build_policy(tokenizer, seed) for seed, role in enumerate(ROLES)},
        SelfEvaluatedCredit(judge),
        args,
        Dataset.from_dict({"prompt": ["1+1="] * options.episodes}),
        processing_class=tokenizer,
    )


def build_episodes(n: int) -> tuple[Episodes, torch.Tensor]:
    """Word problems with a plan and an answer of a few sentences, and the verdicts: every other answer is right."""
    rng, problems, thoughts, answers = random.Random(0), [], [], []
    for row in range(n):
        a, b, c = rng.randint(2, 60), rng.randint(2, 60), rng.randint(2, 9)
        problems.append(
            f"A baker fills {a} boxes in the morning and {b} boxes in the afternoon. Every box holds {c} loaves. How "
            "many loaves does the baker pack in a day?"
        )
        thoughts.append(
            f"Plan: first add the boxes of the morning and of the afternoon, {a} + {b}. Then multiply the number of "
            f"boxes by the {c} loaves in each. Mind that both shifts count, and check the product by its last digit."
        )
        total = (a + b) * c - (row + 1) % 2
        answers.append(
            f"There are {a} + {b} = {a + b} boxes. Each of them holds {c} loaves, so the baker packs {a + b} * {c} = "
            f"{total} loaves in a day. The last digit agrees. The answer is \\boxed{{{total}}}."
        )
    outcome = torch.tensor([1.0 if row % 2 else -1.0 for row in range(n)])
    said = {"thinker": lambda prompts: thoughts, "solver": lambda prompts: answers}
    return run_team(ThinkSolve(), problems, said), outcome


@torch.no_grad()
def score_in_full(trainer: MultiAgentGRPOTrainer, role: str, prompts: list, choices: list[list[str]]) -> torch.Tensor:
    """What `PolicyGenerator.score` gives, up to a constant per prompt, from n·9 whole rows."""
    with trainer.as_role(role):
        tokenizer, device = trainer.processing_class, trainer.accelerator.device
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        choice_ids = [tokenizer(row, add_special_tokens=False)["input_ids"] for row in choices]
        heads = [torch.tensor(ids) for ids, row in zip(prompt_ids, choice_ids, strict=True) for _ in row]
        tails = [torch.tensor(ids) for row in choice_ids for ids in row]
        (head, head_mask), (tail, tail_mask) = [
            (
                pad(rows, tokenizer.pad_token_id, side).to(device),
                pad([torch.ones_like(r) for r in rows], 0, side).to(device),
            )
            for rows, side in ((heads, "left"), (tails, "right"))
        ]
        log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([head, tail], dim=1),
            torch.cat([head_mask, tail_mask], dim=1),
            tail.size(1),
            batch_size=max(1, trainer.args.per_device_train_batch_size),
        )
        return (log_probs * tail_mask).sum(dim=1).view(len(prompts), -1)


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def rate(trainer, mode: str, episodes: Episodes, outcome: torch.Tensor) -> dict[str, float]:
    """Both roles rate all episodes: tokens, seconds and the share that can be read."""
    credit = SelfEvaluatedCredit(judge, rating_mode=mode)
    raters = {role: PolicyGenerator(trainer, role, "rating") for role in ROLES}
    shares, seconds = timed(credit.rate, raters, episodes, outcome)
    tokens = sum(r.scored_tokens + sum(len(ids) for _, ids, _ in r.samples) for r in raters.values())
    valid = shares.isnan().logical_not().float().mean().item()
    return {"tokens": tokens, "seconds": seconds, "valid_rate": valid}


def score(trainer, episodes: Episodes, outcome: torch.Tensor) -> dict[str, float]:
    """Both roles score the nine choices of all episodes, with the prefix shared and in full; in seconds."""
    credit, nine = SelfEvaluatedCredit(judge, rating_mode="constrained"), []
    verdicts = [VERDICTS[value > 0] for value in outcome.tolist()]
    for verdict in verdicts:
        prefix, choices = rating_choices(verdict)
        nine.append([prefix + choice for choice in choices])
    found = {"shared": 0.0, "full": 0.0, "difference": 0.0}
    for role in ROLES:
        rater = PolicyGenerator(trainer, role, "rating")
        prompts = [
            credit._rating_prompt(role, problem, texts_of(episodes, row), verdict, rater.context_length)
            for row, (problem, verdict) in enumerate(zip(episodes.prompts, verdicts, strict=True))
        ]
        shared, shared_seconds = timed(rater.score, prompts, nine)
        full, full_seconds = timed(score_in_full, trainer, role, prompts, nine)
        found["shared"], found["full"] = found["shared"] + shared_seconds, found["full"] + full_seconds
        difference = (shared.log_softmax(-1) - full.log_softmax(-1)).abs().max().item()
        found["difference"] = max(found["difference"], difference)
    return found


def texts_of(episodes: Episodes, row: int) -> dict[str, str]:
    return {role: episodes.view(role, episodes.said[role].texts[row]) for role in ROLES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--output", default="outputs/bench/ratings.json")
    options = parser.parse_args()
    options.cpu = not torch.cuda.is_available()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    episodes, outcome = build_episodes(options.episodes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(options, folder)
        tokenizer = trainer.tokenizers["solver"]
        rate(trainer, "constrained", episodes, outcome), score(trainer, episodes, outcome)  # to warm up
        turns = []
        for turn in range(options.turns):
            modes = ("constrained", "generate")[:: 1 if turn % 2 == 0 else -1]
            found = {mode: rate(trainer, mode, episodes, outcome) for mode in modes}
            turns.append({**found, "score": score(trainer, episodes, outcome)})
            times = {mode: found[mode]["seconds"] for mode in found} | turns[-1]["score"]
            print(f"turn {turn + 1}:", *(f"{name} {value:.3g}" for name, value in times.items()), sep="  ")

    def median(function: Callable) -> float:
        return statistics.median(map(function, turns))

    reply = [
        len(tokenizer(rating_choices(verdict)[0] + rating_choices(verdict)[1][0])["input_ids"]) for verdict in VERDICTS
    ]
    per_rating = {
        mode: median(lambda t, mode=mode: t[mode]["tokens"]) / (2 * options.episodes)
        for mode in ("constrained", "generate")
    }
    result = {
        "token_ratio": median(lambda t: t["generate"]["tokens"] / t["constrained"]["tokens"]),
        "token_ratio_all_choices": median(lambda t: t["generate"]["tokens"] / t["constrained"]["tokens"]) / len(PAIRS),
        "token_ratio_of_json_alone": (statistics.mean(reply) + 1) / per_rating["constrained"],  # and the end of text
        "seconds_ratio": median(lambda t: t["generate"]["seconds"] / t["constrained"]["seconds"]),
        "valid_rate": min(t["constrained"]["valid_rate"] for t in turns),
        "free_valid_rate": median(lambda t: t["generate"]["valid_rate"]),
        "prefix_sharing_speedup": median(lambda t: t["score"]["full"] / t["score"]["shared"]),
        "prefix_sharing_difference": max(t["score"]["difference"] for t in turns),
        "tokens_per_rating": {"constrained": per_rating["constrained"], "free": per_rating["generate"]},
        "seconds": {
            "constrained": median(lambda t: t["constrained"]["seconds"]),
            "free": median(lambda t: t["generate"]["seconds"]),
            "scoring_with_shared_prefix": median(lambda t: t["score"]["shared"]),
            "scoring_in_full": median(lambda t: t["score"]["full"]),
        },
        "choices": len(PAIRS),
        "rating_max_tokens": MAX_RATING_TOKENS,
        "settings": vars(options),
    }
    seconds = result["seconds"]
    print(f"\n{2 * options.episodes} ratings{'':20}{'constrained':>14}{'free text':>14}{'ratio':>9}")
    for label, one, two, ratio in (
        ("tokens per rating", *per_rating.values(), result["token_ratio"]),
        ("seconds", seconds["constrained"], seconds["free"], result["seconds_ratio"]),
    ):
        print(f"{label:30}{one:14.3f}{two:14.3f}{ratio:9.1f}")
    print(f"{'valid rate':30}{result['valid_rate']:14.3f}{result['free_valid_rate']:14.3f}")
    print(f"{'JSON alone, tokens':44}{statistics.mean(reply) + 1:14.3f}{result['token_ratio_of_json_alone']:9.1f}")
    print(f"\nscoring nine choices{'':10}{'prefix shared':>14}{'in full':>14}{'ratio':>9}")
    print(
        f"{'seconds':30}{seconds['scoring_with_shared_prefix']:14.3f}{seconds['scoring_in_full']:14.3f}"
        f"{result['prefix_sharing_speedup']:9.1f}"
    )
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
