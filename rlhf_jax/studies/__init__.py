"""Studies: a claim about training, run again with several seeds, and what the seeds say of it."""
