"""
How a role's newest LoRA adapter gets into a colocated vLLM engine: merged into the base, or as a LoRA request.

    .venv-vllm/bin/python benchmarks/vllm_adapters.py [--pushes 15]

Needs the environment of `make test-vllm`. There is one trainer with `policy_sharing="adapters"` and two engines of
the same base. This is done for the tiny policy of the arithmetic task and for a larger one. Before every push, the
adapter of one role, in turn, is changed as an optimizer step would change it. Then both engines get it, in
alternating order:

1. merged, which is what the project does: `AgentEngines.prepare` lets TRL push the whole model, and restores the
   base.
2. lora: the adapter is saved to a folder. The second engine loads it again under the same id (`load_inplace`) and
   drops its prefix cache. vLLM looks up that cache by the adapter's name and folder, so it would outlive the old
   weights.

After every push, both engines answer the same 16 prompts. Each log-probability that vLLM reports is compared with the
policy's own, in float32. vLLM runs on a CPU as in `vllm_step.py`. Its seconds say nothing about a GPU's, but they
show how the cost grows with the base.

Writes `outputs/bench/vllm_adapters.json`, with everything also for the larger policy (`_larger`):

- `<way>_push_seconds` and `<way>_generate_seconds`: medians over the pushes.
- `lora_over_merged_push`: the median of the ratios within a push.
- `<way>_logp_difference`: the largest difference over all tokens, pushes and roles.
- `left_out_logp_difference`: the difference if the push had been left out, the smallest over all pushes.
"""

from vllm_step import judge, vllm_on_cpu  # isort: skip (first: it sets what vLLM reads from the environment)

import argparse
import importlib.metadata
import statistics
import tempfile
import time
from collections import defaultdict

import torch
import trl.generation.vllm_generation as generation
import vllm
from datasets import disable_progress_bars
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as hf_logging
from vllm.lora.request import LoRARequest

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer, SharedCredit
from ccpo.generation.scoring import evaluating, left_pad
from ccpo.report import write_json
from ccpo.tasks import arithmetic
from ccpo.training.policies import parameter_agents

RANK, LENGTH, PROMPTS = 8, 12, 16
LARGER = {"hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 8, "num_attention_heads": 8}
LARGER |= {"num_key_value_heads": 8, "head_dim": 64}
ROWS = ("merged_push_seconds", "lora_push_seconds", "lora_over_merged_push", "merged_generate_seconds")
ROWS += ("lora_generate_seconds", "merged_logp_difference", "lora_logp_difference", "left_out_logp_difference")


class Merged:
    """The project's way: the trainer's engine gets the whole model, the role's adapter merged into it."""

    def __init__(self, trainer: MultiAgentGRPOTrainer):
        self.trainer, self.engine = trainer, trainer.vllm_generation
        self.llm = self.engine.llm

    def push(self, role: str) -> None:
        with self.trainer.as_role(role):
            self.trainer.engines.prepare(role, {"max_completion_length": LENGTH})

    def generate(self, role: str, prompts: list[list[int]]) -> tuple[list[list[int]], list]:
        _, completions, log_probs, _ = self.engine.generate(prompts, None, 1)
        return completions, log_probs


class Requested:
    """An engine of the base alone, that applies the role's adapter, loaded from a folder, to the role's requests."""

    def __init__(self, trainer: MultiAgentGRPOTrainer, folder: str):
        self.trainer, self.folder, first = trainer, folder, trainer.vllm_generation
        self.llm = generation.LLM(
            model=trainer.model.name_or_path,
            max_model_len=first.max_model_length,
            max_num_seqs=first.max_num_seqs,
            max_num_batched_tokens=4096,
            gpu_memory_utilization=first.gpu_memory_utilization,
            distributed_executor_backend="external_launcher",
            logprobs_mode="processed_logprobs",
            enable_lora=True,
            max_loras=len(trainer.roles),
            max_lora_rank=RANK,
        )

    def request(self, role: str, **settings) -> LoRARequest:
        return LoRARequest(role, 1 + self.trainer.roles.index(role), f"{self.folder}/{role}", **settings)

    def push(self, role: str) -> None:
        self.trainer.model.save_pretrained(self.folder, selected_adapters=[role])
        self.llm.llm_engine.add_lora(self.request(role, load_inplace=True))
        self.llm.reset_prefix_cache()

    def generate(self, role: str, prompts: list[list[int]]) -> tuple[list[list[int]], list]:
        sampling = vllm.SamplingParams(max_tokens=LENGTH, logprobs=0, ignore_eos=True)
        rows = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self.llm.generate(rows, sampling, use_tqdm=False, lora_request=self.request(role))
        return [list(output.outputs[0].token_ids) for output in outputs], generation.extract_logprobs(outputs)[0]


def build_trainer(folder: str, cpu: bool) -> MultiAgentGRPOTrainer:
    """A trainer of the model in the folder, with an adapter per role, neither of them zero; it takes no step."""
    return MultiAgentGRPOTrainer(
        folder,
        SharedCredit(judge),
        MultiAgentGRPOConfig(
            output_dir=folder,
            policy_sharing="adapters",
            schedule="joint",
            per_device_train_batch_size=PROMPTS,
            max_completion_length=LENGTH,
            generation_kwargs={"ignore_eos": True},
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=256,
            model_init_kwargs={"dtype": "float32"},
            report_to="none",
            bf16=False,
            use_cpu=cpu,
        ),
        arithmetic.build_dataset("train", size=PROMPTS),
        peft_config=LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        topology=arithmetic.topology(),
    )


@torch.no_grad()
def move(trainer: MultiAgentGRPOTrainer, role: str) -> None:
    """What an optimizer step of the role does: its weights move, and the engines are told."""
    for parameter, owner in parameter_agents(trainer.model, trainer.roles):
        if owner == role:
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    trainer.engines.mark_changed({role})


def logp_difference(trainer: MultiAgentGRPOTrainer, role: str, prompts, completions, log_probs) -> float:
    """The largest difference between the log-probabilities of an engine and of the role's policy, over all tokens."""
    device = trainer.accelerator.device
    ids, mask = left_pad([p + c for p, c in zip(prompts, completions, strict=True)], 0, device)
    with trainer.as_role(role), evaluating(trainer.model):
        logits = trainer.model(input_ids=ids, attention_mask=mask, logits_to_keep=LENGTH + 1).logits[:, :-1]
    expected = logits.log_softmax(-1).gather(-1, ids[:, -LENGTH:, None])
    return (expected - torch.tensor(log_probs, device=device)).abs().max().item()  # (B, LENGTH, 1)


def measure(folder: str, options: argparse.Namespace) -> dict[str, float]:
    """All figures of the base in the folder, by their names, after one push of each role to warm up."""
    trainer = build_trainer(folder, options.cpu)
    ways = {"merged": Merged(trainer), "lora": Requested(trainer, f"{folder}/adapters")}
    prompts = trainer.processing_class(list(trainer.train_dataset["prompt"]))["input_ids"]
    seconds, differences, left_out, last = defaultdict(list), defaultdict(list), [], {}
    for push in range(-len(trainer.roles), options.pushes):
        role = trainer.roles[push % len(trainer.roles)]
        move(trainer, role)
        if push >= 0:
            left_out.append(logp_difference(trainer, role, prompts, *last[role]))
        for name, way in list(ways.items())[:: 1 if push // 2 % 2 else -1]:
            started = time.perf_counter()
            way.push(role)
            pushed = time.perf_counter()
            last[role] = way.generate(role, prompts)
            ended = time.perf_counter()
            differences[name].append(logp_difference(trainer, role, prompts, *last[role]))
            if push >= 0:
                seconds[f"{name}_push"].append(pushed - started)
                seconds[f"{name}_generate"].append(ended - pushed)
    for way in ways.values():
        way.llm.llm_engine.engine_core.shutdown()
    ratios = [lora / merged for lora, merged in zip(seconds["lora_push"], seconds["merged_push"], strict=True)]
    return {
        "parameters": sum(p.numel() for p, owner in parameter_agents(trainer.model, trainer.roles) if owner is None),
        **{f"{name}_seconds": statistics.median(values) for name, values in seconds.items()},
        "lora_over_merged_push": statistics.median(ratios),
        **{f"{name}_logp_difference": max(values) for name, values in differences.items()},
        "left_out_logp_difference": min(left_out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=int, default=15, help="timed, of the roles in turn")
    parser.add_argument("--output", default="outputs/bench/vllm_adapters.json")
    options = parser.parse_args()
    options.cpu = not torch.cuda.is_available()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()
    torch.manual_seed(0)

    tokenizer = arithmetic.build_tokenizer()
    tiny = arithmetic.build_policy(tokenizer)
    models = {"": tiny, "_larger": LlamaForCausalLM(LlamaConfig(**tiny.config.to_dict() | LARGER))}
    result = {}
    with vllm_on_cpu(options.cpu):
        for suffix, model in models.items():
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                result |= {f"{name}{suffix}": value for name, value in measure(folder, options).items()}
    print(f"\n{'parameters of the base':28}" + "".join(f"{result[f'parameters{suffix}']:15,}" for suffix in models))
    for name in ROWS:
        print(f"{name:28}" + "".join(f"{result[name + suffix]:15.3g}" for suffix in models))
    result["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "peft", "trl")}
    result["versions"]["vllm"] = vllm.__version__
    result["settings"] = vars(options) | {"rank": RANK, "length": LENGTH, "prompts": PROMPTS}
    print(write_json(result, options.output))


if __name__ == "__main__":
    main()
