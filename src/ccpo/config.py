"""The old import path of `ccpo.training.config`."""

from .training.config import *  # noqa: F403
