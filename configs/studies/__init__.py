"""Studies: a question, the arms that answer it, and how (docs/studies.md)."""
