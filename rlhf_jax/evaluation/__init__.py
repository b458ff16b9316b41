"""Figures about answers and reward models, with their uncertainty; NumPy and SciPy only."""
