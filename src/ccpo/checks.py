"""The old import path of `ccpo.training.checks`."""

from .training.checks import *  # noqa: F403
