"""Training data made fit: personal data out, duplicates out, leaks of test data refused.

    python -m experiments.clean --data rows.jsonl --out clean.jsonl
    python -m experiments.clean --data train.jsonl --out clean.jsonl --test heldout.jsonl

Every string of a row is scrubbed. Rows with the same words, and more than ``--most`` rows that
begin with the same ``--prefix-words`` words, are dropped. With ``--test`` the run stops with exit
code 2 if a test row, scrubbed in the same way, is in what is left.
"""

import json
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_jax.cli import main
from rlhf_jax.config import CleanConfig
from rlhf_jax.data.columns import texts_in
from rlhf_jax.data.files import check_writable, find_files, read_rows, write_atomically
from rlhf_jax.data.messages import HALF
from rlhf_jax.errors import InputError
from rlhf_jax.text.duplicates import (
    check_no_leak,
    without_duplicates,
    without_shared_prefixes,
)
from rlhf_jax.text.personal_data import find, scrub


def run(config: CleanConfig) -> dict[str, int]:
    """Write the rows that stay, scrubbed; how many there are of each fate."""
    check_writable(config.out, config.data, *([config.test] if config.test else []))
    rows = whole_rows(config.data)
    personal = sum(len(find(text)) for row in rows for text in texts_in(row))
    scrubbed = [scrubbed_value(row) for row in rows]
    distinct = without_duplicates(scrubbed, text_of)
    kept = without_shared_prefixes(distinct, text_of, words=config.prefix_words, most=config.most)
    if config.test is not None:
        test = whole_rows(config.test)
        # What is compared with scrubbed text is scrubbed too.
        check_no_leak(
            [text_of(row) for row in kept], [text_of(scrubbed_value(row)) for row in test]
        )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
    write_atomically(config.out, "".join(lines))
    counts = {
        "rows": len(rows),
        "personal data replaced": personal,
        "duplicates dropped": len(scrubbed) - len(distinct),
        "shared beginnings dropped": len(distinct) - len(kept),
        "kept": len(kept),
    }
    for name, count in counts.items():
        print(f"{name}: {count:,}")
    return counts


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file or folder. Raises InputError for one that UTF-8 cannot write."""
    rows = []
    for origin, row in chain.from_iterable(map(read_rows, find_files(path))):
        if HALF.search(json.dumps(row, ensure_ascii=False)):
            raise InputError(f"{origin}: holds half a surrogate pair, expected whole characters")
        rows.append(row)
    return rows


def scrubbed_value(value: Any) -> Any:
    """A row, or part of one, with personal data replaced in every text."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {key: scrubbed_value(part) for key, part in value.items()}
    return [scrubbed_value(part) for part in value] if isinstance(value, list) else value


def text_of(row: dict) -> str:
    """All texts of a row."""
    return "\n".join(texts_in(row))


if __name__ == "__main__":
    main(run, CleanConfig)
