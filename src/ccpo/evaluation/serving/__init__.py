"""Serve a team behind an OpenAI-compatible endpoint. `app.create_app` makes the application, `app.serve` runs it."""
