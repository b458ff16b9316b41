"""From the files that users have to arrays: rows, tokenizers, encoding, batches."""
