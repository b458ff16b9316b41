"""Use of trained models: sampling, scoring, log-probabilities of texts, the alignment tax."""
