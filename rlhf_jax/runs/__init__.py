"""The life of a run: its folder, checkpoints, logs, identity, signals, and what it starts from."""
