"""Callables that turn prompts into text: a local model (transformers or vLLM), or any OpenAI-compatible endpoint.

The drop-in reward functions reach the partner through one, and evaluation both roles. A generator maps a list of
prompts, plain texts or conversations, to the list of their completions, in the same order.
"""

from .completion import Completion
from .endpoint import OpenAIGenerator
from .local import TransformersGenerator
from .offline import VLLMGenerator

__all__ = ["Completion", "OpenAIGenerator", "TransformersGenerator", "VLLMGenerator"]
