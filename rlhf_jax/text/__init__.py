"""Texts without tokens or rows: words, sentences, duplicates, languages, a linear classifier."""
