"""The old import path of `ccpo.team.prompts`."""

from .team.prompts import *  # noqa: F403
