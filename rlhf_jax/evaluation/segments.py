"""Words of texts that may be English, Chinese or both."""

import re

TOKEN = re.compile(r"[a-z0-9]+|[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")


def mixed_tokens(text: str) -> list[str]:
    """Runs of a-z and 0-9, lower-cased, as ROUGE cuts English; each Chinese character alone."""
    return TOKEN.findall(text.lower())
