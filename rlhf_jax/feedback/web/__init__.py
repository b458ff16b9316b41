"""The labelling site: its pages, its API for programs, and its walls."""
