"""Differential privacy, canaries, and the removal of personal data."""
