"""The command line's fields of Think-Solve: its prompts, and a model for each of its two roles."""

from dataclasses import dataclass, field, replace

from .topology import ThinkSolve, Topology

_PROMPTS = ("thinker_prompt", "solver_prompt", "solo_prompt")
_MODELS = {"thinker": "thinker_model", "solver": "solver_model"}


@dataclass
class ThinkSolveArguments:
    """
    Fields that only Think-Solve has; another team's prompts stand in its `topology`, and its models in `models`.

    Args:
        thinker_model, solver_model (`str`, *optional*): a model per role; default to `model_name_or_path`.
        thinker_prompt, solver_prompt, solo_prompt (`str`, *optional*): templates instead of [`ThinkSolve`]'s.
    """

    thinker_model: str | None = field(
        default=None,
        metadata={
            "help": "The model of the Thinker, the role that writes a plan: an id or a folder. Defaults to "
            "`model_name_or_path`."
        },
    )
    solver_model: str | None = field(
        default=None,
        metadata={
            "help": "The model of the Solver, the role that writes the answer: an id or a folder. Defaults to "
            "`model_name_or_path`."
        },
    )
    thinker_prompt: str | None = field(default=None, metadata={"help": "The Thinker's prompt: a text with {problem}."})
    solver_prompt: str | None = field(
        default=None,
        metadata={
            "help": "The Solver's prompt: a text with {problem} and {thought}, which stands for the Thinker's text."
        },
    )
    solo_prompt: str | None = field(
        default=None,
        metadata={"help": "The Solver's prompt when it answers without the Thinker: a text with {problem}."},
    )

    def with_prompts(self, topology: Topology) -> Topology:
        """
        The team with the prompts that were given.

        Raises:
            `ValueError`: prompts for another team than Think-Solve, or ones that it cannot have.
        """
        given = {name: getattr(self, name) for name in _PROMPTS if getattr(self, name) is not None}
        if isinstance(topology, ThinkSolve):
            return replace(topology, **given)
        if given:
            raise ValueError(
                f"`{next(iter(given))}` is a field of the Think-Solve team, but `topology` is another team. "
                "Write the prompts as `prompt` of each role in `topology`."
            )
        return topology

    def named_models(self) -> dict[str, str]:
        """Agent -> model, of those that were named by a field of their own."""
        given = {agent: getattr(self, name) for agent, name in _MODELS.items()}
        return {agent: name for agent, name in given.items() if name is not None}
