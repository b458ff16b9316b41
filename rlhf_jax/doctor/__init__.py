"""Checks that a setup computes what it should, and mathematical properties of its parts."""
