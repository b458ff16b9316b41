"""Tasks to try the whole chain on, a file each: prompts, demonstrations, gold scorer, metrics."""
