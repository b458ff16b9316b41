"""A run folder's page: figures, tables, answers side by side, and the verdict."""
