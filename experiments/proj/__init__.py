"""Forks of the experiments, each a question of its own."""
