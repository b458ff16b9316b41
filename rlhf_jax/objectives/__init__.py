"""Losses and estimators as functions of arrays, each with its equation and its source."""
