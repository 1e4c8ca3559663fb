"""The subclass of TRL's trainer, and what only it needs."""
