"""A team behind an OpenAI-compatible endpoint: `create_app` makes the application, `serve` runs it."""

from .app import create_app, serve

__all__ = ["create_app", "serve"]
