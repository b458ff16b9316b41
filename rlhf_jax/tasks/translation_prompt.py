"""How a translation is asked for."""

ASK, ANSWER = "Chinese: ", "\nEnglish:"


def prompt_of(chinese: str) -> str:
    """A Chinese sentence, and the question for its English."""
    return ASK + chinese + ANSWER


def chinese_of(prompt: str) -> str:
    """The Chinese sentence of a prompt."""
    return prompt.removeprefix(ASK).removesuffix(ANSWER)
