"""Instructions whose fulfilment a program can check: the 25 kinds of IFEval (Zhou et al. 2023).

Written anew from the paper's table of instructions, with its names and arguments. Rules differ from
the published program where that leans on other packages: sentences are split by punctuation and
words in capitals by what is no letter (there: NLTK), and languages are told by letters and function
words (there: langdetect). Besides, keywords and markers are taken literally (there: as patterns),
JSON is an object or a list, a line of two dashes is no bullet point, empty paragraphs are not
numbered and more marks are cut off a first word. An empty response fulfils nothing.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlhf_jax.errors import InputError
from rlhf_jax.text.language_detection import language_of

ABBREVIATION = re.compile(
    r"\b(?:(?i:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|e\.g|i\.e|a\.m|p\.m|inc|ltd|co)|[A-Z])\.$"
)
STOP = re.compile(r"(?<![.!?])[.!?]+[\"')\]]*(?=\s|$)|[。！？]+[”』」]*")


class Constraint(NamedTuple):
    """One checkable instruction with its arguments."""

    kind: str
    arguments: dict[str, Any]

    def holds(self, response: str) -> bool:
        """Whether a response fulfils it; an empty one never does."""
        return bool(response.strip()) and CHECKS[self.kind](response, **self.arguments)


def make_constraint(kind: str, arguments: dict[str, Any]) -> Constraint:
    """Raises InputError for a kind that is not known."""
    if kind not in CHECKS:
        raise InputError(f"unknown instruction {kind!r}, expected one of {', '.join(CHECKS)}")
    return Constraint(kind, arguments)


def followed(constraints: Sequence[Constraint], response: str) -> list[bool]:
    """Strict: of each instruction, whether the response as it stands fulfils it."""
    return [constraint.holds(response) for constraint in constraints]


def followed_loosely(constraints: Sequence[Constraint], response: str) -> list[bool]:
    """Whether it does without its first line, last line, both, or asterisks (the paper's §2.2)."""
    variants = loose_variants(response)
    return [any(c.holds(variant) for variant in variants) for c in constraints]


def loose_variants(response: str) -> list[str]:
    """The response, and without its first or last line or both; each also without asterisks.

    IFEval's loose accuracy counts an instruction as followed if any of them follows it.
    """
    lines = response.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(lines_left).strip() for lines_left in cut]
    return [response, *texts, *(text.replace("*", "") for text in [response, *texts])]


# --- helpers --------------------------------------------------------------------------------------


def compare(number: int, relation: str, bound: int) -> bool:
    """Whether number ≥ bound, or number < bound, as ``relation`` says. Raises InputError."""
    if relation == "at least":
        return number >= bound
    if relation == "less than":
        return number < bound
    raise InputError(f"relation is {relation!r}, expected 'at least' or 'less than'")


def count_sentences(text: str) -> int:
    """Pieces that end in . ! ? 。！？ (not after an abbreviation), and a rest without an end."""
    count, start = 0, 0
    for stop in STOP.finditer(text):
        piece = text[start : stop.end()]
        if stop.group().startswith(".") and ABBREVIATION.search(text[start : stop.start() + 1]):
            continue
        if re.search(r"\w", piece):
            count += 1
        start = stop.end()
    return count + bool(re.search(r"\w", text[start:]))


def occurrences(keyword: str, text: str) -> int:
    """Of a keyword or phrase anywhere in the text, whatever its case."""
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def in_english(text: str) -> bool:
    """Also where nothing speaks for any language, as in a few words."""
    return language_of(text) in ("en", None)


# --- the kinds ------------------------------------------------------------------------------------


def forbidden(text: str, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word, in capitals or not."""
    whole = (rf"(?<!\w){re.escape(word)}(?!\w)" for word in forbidden_words)
    return not any(re.search(word, text, re.IGNORECASE) for word in whole)


def letter_frequency(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    """The letter occurs at least, or less than, so many times, in capitals or not."""
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def capital_words(text: str, capital_relation: str, capital_frequency: int) -> bool:
    """At least, or less than, so many words are all in capitals."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)
    return compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def paragraphs(text: str, num_paragraphs: int) -> bool:
    """Separated by ``***``; a first or last empty one does not count, one between does."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[1:-1]
    ends = [part for part in (parts[0], parts[-1] if len(parts) > 1 else "") if part]
    return all(inner) and len(inner) + len(ends) == num_paragraphs


def nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Separated by an empty line; the first word without quotation marks and punctuation."""
    paragraphs = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > len(paragraphs):
        return False
    start = re.match(r"[\"'“‘(*]*([^\s.,?!:;\"'”’)*]*)", paragraphs[nth_paragraph - 1])
    return start is not None and start[1].lower() == first_word.lower()


def bullets(text: str, num_bullets: int) -> bool:
    """Exactly so many lines begin with * or -, which is what Markdown marks a list with."""
    return len(re.findall(r"^[^\S\n]*(?:\*[^*\n]|-(?!-)).*$", text, re.MULTILINE)) == num_bullets


def highlights(text: str, num_highlights: int) -> bool:
    """``*so*`` or ``**so**`` with something in it."""
    marked = re.findall(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*", text)
    return sum(bool(part.strip("*").strip()) for part in marked) >= num_highlights


def sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections begin with the given word and a number."""
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def title(text: str) -> bool:
    """A title stands in <<double angular brackets>>."""
    return any(heading.strip() for heading in re.findall(r"<<(>?(?:(?!<<|>>)[^\n])*)>>", text))


def is_json(text: str) -> bool:
    """A JSON object or list, in a fence of three backticks or not."""
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        return isinstance(json.loads(text.removesuffix("```").strip()), dict | list)
    except (ValueError, RecursionError):
        return False


def postscript(text: str, postscript_marker: str) -> bool:
    """Anywhere in the text, the full stops with it: "tips" is none."""
    marker = postscript_marker.strip().lower()
    forms = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}
    return bool(re.search(forms.get(marker, re.escape(marker)), text.lower()))


def two_responses(text: str) -> bool:
    """Separated by six asterisks, and different."""
    parts = text.split("******")
    inner, ends = parts[1:-1], [part for part in (parts[0], parts[-1]) if part.strip()]
    whole = [part.strip() for part in [*inner, *(ends if len(parts) > 1 else [])]]
    return all(whole) and len(whole) == 2 and whole[0] != whole[1]


def quoted(text: str) -> bool:
    """All of it stands in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def ends_with(text: str, end_phrase: str) -> bool:
    """It ends in this phrase, in capitals or not, quotation marks aside."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def repeats(text: str, prompt_to_repeat: str) -> bool:
    """It begins with the prompt itself, in capitals or not."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda text, keywords: all(occurrences(k, text) for k in keywords),
    "keywords:frequency": lambda text, keyword, relation, frequency: compare(
        occurrences(keyword, text), relation, frequency
    ),
    "keywords:forbidden_words": forbidden,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": lambda text, language: language_of(text) == language,
    "length_constraints:number_sentences": lambda text, relation, num_sentences: compare(
        count_sentences(text), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": paragraphs,
    "length_constraints:number_words": lambda text, relation, num_words: compare(
        len(re.findall(r"\w+", text)), relation, num_words
    ),
    "length_constraints:nth_paragraph_first_word": nth_paragraph,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullets,
    "detectable_format:constrained_response": lambda text: any(a in text for a in ANSWERS),
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": sections,
    "detectable_format:json_format": is_json,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeats,
    "startend:end_checker": ends_with,
    "startend:quotation": quoted,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": lambda text: text.isupper() and in_english(text),
    "change_case:english_lowercase": lambda text: text.islower() and in_english(text),
    "punctuation:no_comma": lambda text: "," not in text,
}
"""By IFEval's names."""
