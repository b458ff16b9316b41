"""What a chain would need on hardware that is not there: memory, operations, time."""
