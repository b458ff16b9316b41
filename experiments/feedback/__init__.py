"""People in the loop: what each command of experiments.feedback does."""
