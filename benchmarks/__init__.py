"""The same work here and in PyTorch, measured in turns: ``python -m benchmarks.run --help``."""
