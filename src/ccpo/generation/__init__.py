"""
Generators: callables that turn a list of prompts into a list of texts, in the same order.

A prompt is a plain text or a conversation (chat messages). A generator is a local model, which runs with transformers
or vLLM, or any endpoint that is compatible with OpenAI's. Evaluations have one for each role. If a credit scheme is
used with TRL's own `GRPOTrainer`, generators write the texts of the roles that are not trained.
"""

from .completion import Completion
from .endpoint import OpenAIGenerator
from .local import TransformersGenerator
from .offline import VLLMGenerator

__all__ = ["Completion", "OpenAIGenerator", "TransformersGenerator", "VLLMGenerator"]
