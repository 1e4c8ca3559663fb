"""[`MultiAgentGRPOTrainer`], a subclass of TRL's trainer, and the modules that only it needs."""
