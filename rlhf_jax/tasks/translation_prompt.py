"""How a translation is asked for."""

ASK, ANSWER = "Chinese: ", "\nEnglish:"


def prompt_of(chinese: str) -> str:
    return ASK + chinese + ANSWER


def chinese_of(prompt: str) -> str:
    return prompt.removeprefix(ASK).removesuffix(ANSWER)
