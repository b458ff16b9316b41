"""How a summary is asked for."""

QUESTION = "\n\nTL;DR:"


def prompt_of(abstract: str) -> str:
    """White space is single spaces: two files of papers then have the same prompts."""
    return " ".join(abstract.split()) + QUESTION


def abstract_of(prompt: str) -> str:
    """The abstract that a prompt asks to summarise."""
    return prompt.removesuffix(QUESTION)
