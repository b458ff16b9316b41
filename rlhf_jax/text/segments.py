"""Words of texts that may be English, Chinese or both."""

import re

HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
TOKEN = re.compile(rf"[a-z0-9]+|{HAN}")


def mixed_tokens(text: str) -> list[str]:
    """Runs of a-z and 0-9, lower-cased, as ROUGE cuts English; each Chinese character alone."""
    return TOKEN.findall(text.lower())


def chinese_share(text: str) -> float:
    """Share of the words that are Chinese characters; 0 of a text without words."""
    tokens = mixed_tokens(text)
    return sum(bool(re.match(HAN, token)) for token in tokens) / max(len(tokens), 1)
