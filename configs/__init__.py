"""Presets: each file has a ``get_config`` that gives a config, and says what it is for."""
