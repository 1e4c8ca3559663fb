"""The old path of `ccpo.training.config`."""

from .training.config import *  # noqa: F403
