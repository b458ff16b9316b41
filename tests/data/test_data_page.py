"""docs/data.md cannot lie: each of its examples is read, and compared with what the page says."""

import json
import pathlib
import re

import pytest

from rlhf_jax.config.data import column_names
from rlhf_jax.data.formats import Account, Comparison, Demonstration, Prompt, Text, iterate
from rlhf_jax.errors import InputError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
EXAMPLE = re.compile(
    r"```(jsonl|json|txt|csv|tsv)\n(.*?)```\n\nAs (texts|prompts|demonstrations|comparisons)"
    r"(?:, with `--columns (\S+)`)?:\n\n"
    r"```text\n(.*?)```\n",
    re.DOTALL,
)
KINDS = {
    "texts": Text,
    "prompts": Prompt,
    "demonstrations": Demonstration,
    "comparisons": Comparison,
}
EXAMPLES = EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))


def told(path: pathlib.Path, kind: type, columns: str) -> str:
    """What the page says of these rows: those that are learnt, then what is left out or refused."""
    account, lines = Account(), []
    try:
        for row in iterate(path, kind, account, column_names(columns)):
            aside = ("origin", "tokens", "columns", "turns")
            fields = {k: v for k, v in row._asdict().items() if k not in aside}
            # A message is its role and its text, and nothing third where no function is called.
            lines.append(json.dumps(fields, ensure_ascii=False).replace(', ""]', "]"))
        lines += [f"left out, line {each.origin.line}: {each.why}" for each in account.left_out]
        lines += [f"said, of {count} rows: {note}" for note, count in account.notes.items()]
    except InputError as error:
        lines = [f"refused: {str(error).replace(f'{path.parent}/', '')}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("suffix, rows, kind, columns, expected", EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path, suffix, rows, kind, columns, expected):
    path = tmp_path / f"rows.{suffix}"
    path.write_text(rows, encoding="utf-8")
    assert told(path, KINDS[kind], columns) == expected


def test_every_format_has_an_example():
    page = PAGE.read_text(encoding="utf-8")
    assert len(EXAMPLES) == page.count("\nAs ") and len(EXAMPLES) >= 20
    assert {kind for _, _, kind, _, _ in EXAMPLES} == set(KINDS)
