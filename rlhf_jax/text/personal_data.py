"""Personal data out of text, English and Chinese: found by form, replaced by its kind.

    scrub("Call 415-555-0132 or write to ann@example.org")  # "Call [PHONE] or write to [EMAIL]"

Found: e-mail addresses, telephone numbers, payment cards (with Luhn's check), bank accounts (IBAN,
with its check digits), identity numbers (Chinese 18-digit with its check digit, US social
security), IP addresses (v4 and v6) and URLs. Not found: names, postal addresses, anything that only
its meaning gives away: people must be told not to enter it.

There are two tables of rules, as the two uses err on different sides. ``TRAINING_TEXT`` leaves
numbers alone that are part of something longer (an order number is no telephone) and takes every
URL. ``TYPED`` is for what people enter and a store keeps for good: it has the same rules, then the
same forms wherever they stand; a URL stays, being what a prompt may be about, unless it holds a
password. tests/text/test_personal_data.py has precision and recall on sentences labelled by hand.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """Personal data in a text, at characters ``start`` to ``end``."""

    kind: str
    start: int
    end: int


class Rule(NamedTuple):
    """A kind of personal data, its form, and the check that tells it from what looks alike."""

    kind: str
    form: re.Pattern
    check: Callable[[str], bool]


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of a payment card (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(text: str) -> bool:
    """Whether the digits are those of a payment card: 13 to 19, not all equal, right by Luhn."""
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def is_chinese_id(text: str) -> bool:
    """18 characters with a date of birth and the check digit of GB 11643-1999."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(text, weights, strict=False))
    return "10X98765432"[total % 11] == text[-1].upper()


def is_social_security(text: str) -> bool:
    """No area 000, 666 or 9xx, no group 00, no serial 0000."""
    area, group, serial = re.split(r"[- ]", text)
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def is_iban(text: str) -> bool:
    """ISO 7064: the number with its first four characters moved to the end is 1 modulo 97."""
    compact = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_ip(text: str) -> bool:
    """Whether this is an address of IPv4 or IPv6; two colons alone are none."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text != "::"


def is_phone(text: str) -> bool:
    """Whether there are 7 to 15 digits, of three kinds at least."""
    digits = re.sub(r"\D", "", text)
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2


def always(text: str) -> bool:
    """True: a form that needs no further check."""
    return True


CHINESE_ID = r"[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"
SOCIAL_SECURITY = r"\d{3}(?:-\d{2}-| \d{2} )\d{4}"
CARD = r"\d(?:[ -]?\d){12,18}"
NORTH_AMERICAN = r"(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"
CHINESE_MOBILE = r"1[3-9]\d(?:[ -]?\d{4}){2}"
CHINESE_FIXED = r"\(?0\d{2,3}\)?[ -]\d{7,8}"
NUMBERS = (CHINESE_ID, SOCIAL_SECURITY, CARD, NORTH_AMERICAN, CHINESE_MOBILE, CHINESE_FIXED)

# Characters that make a run of digits part of something longer.
# Chinese characters do not: 电话13812345678. Nor does a slash or comma between two numbers:
# 13812345678/13912345678, of which the first is marked when the second is looked at.
BEFORE = r"(?:(?<![0-9A-Za-z_.+@/-])|(?<=\]/))"
END = r"(?![0-9A-Za-z_@]|[.-]\d)"
AFTER = rf"{END}(?![,/](?!(?:{'|'.join(NUMBERS)}){END})\d)"


def number(*forms: str) -> re.Pattern:
    """A pattern of one of the forms that is no part of a longer number."""
    return re.compile(f"{BEFORE}(?:{'|'.join(forms)}){AFTER}")


URL = Rule(
    "URL",
    re.compile(
        r"(?<![A-Za-z])(?:https?|ftp)://[^\s<>\"'，。！？；、）】》]+|(?<![0-9A-Za-z_@.])www\.[a-z0-9-]+\.[a-z]{2,}"
        r"[^\s<>\"'，。！？；、）】》]*",
        re.IGNORECASE,
    ),
    always,
)
EMAIL = Rule(
    "EMAIL",
    re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![A-Za-z0-9])"
    ),
    always,
)
IBAN = Rule(
    "IBAN",
    re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII),
    is_iban,
)
NUMBER_RULES = (
    Rule("ID", number(CHINESE_ID), is_chinese_id),
    Rule("ID", number(SOCIAL_SECURITY), is_social_security),
    Rule("CARD", number(CARD), is_card),
    Rule(
        "IP",
        re.compile(
            BEFORE
            + r"(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4})"
            + r"(?![0-9A-Za-z_:]|\.\d)"
        ),
        is_ip,
    ),
    Rule(
        "PHONE",
        re.compile(
            # International: + and a country code
            r"(?<![0-9A-Za-z_+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?"
            r"\d{1,4}(?:[ .-]?\d{2,4}){1,4}(?!\d)"
            rf"|{BEFORE}(?:{NORTH_AMERICAN}|{CHINESE_MOBILE}|{CHINESE_FIXED}){AFTER}"
        ),
        is_phone,
    ),
)
TRAINING_TEXT: tuple[Rule, ...] = (URL, EMAIL, IBAN, *NUMBER_RULES)
"""An earlier rule has its text before a later one."""

# The same kinds beside letters, slashes and signs (QQ13812345678, /415-555-0132), in any script.
# Every repeat is bounded: else the time would grow with the square of what somebody types.
SECRET_URL = Rule(
    "URL", re.compile(r"\b\w{1,32}://[^\s/:@]{1,256}:[^\s/@]{1,256}@\S{1,2048}"), always
)
ANYWHERE = (
    # Lengths of RFC 5321 and RFC 1035: 64 characters before the @, 63 in a label.
    Rule("EMAIL", re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,32}"), always),
    Rule("ID", re.compile(rf"(?<!\d){CHINESE_ID}(?!\d)"), is_chinese_id),
    Rule("PHONE", re.compile(rf"(?<!\d)(?:\+?86[ -]?)?{CHINESE_MOBILE}(?!\d)"), always),
    Rule("CARD", re.compile(rf"(?<![\d+-]){CARD}(?![\d-])"), is_card),
    Rule("ID", re.compile(rf"(?<![\d-])(?:{SOCIAL_SECURITY})(?![\d-])"), is_social_security),
    # A port may follow, and an address of IPv6 may end in two colons.
    Rule(
        "IP", re.compile(r"(?<![0-9A-Za-z_.])\d{1,3}(?:\.\d{1,3}){3}(?![0-9A-Za-z_]|\.\d)"), is_ip
    ),
    Rule("IP", re.compile(r"(?<![\w:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])"), is_ip),
    Rule(
        "PHONE",
        re.compile(
            r"(?<![0-9A-Za-z_.+-])"
            r"(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
            r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![0-9A-Za-z_-])"
        ),
        always,
    ),
)
TYPED: tuple[Rule, ...] = (SECRET_URL, EMAIL, IBAN, *ANYWHERE, *NUMBER_RULES)
"""``EMAIL`` goes first: in a Chinese sentence the wider form takes the words before an address."""


BLOCK = 4000
"""Characters that are looked at together: the time grows with the text, not with its square."""
ENDS_A_FORM = "\n\r\t\f\v<\"'，。！？；、）】》"
"""Characters that are in none of the forms, and that no rule looks back at."""


def find(text: str, rules: Sequence[Rule] = TRAINING_TEXT) -> list[Found]:
    """Everything personal in the text, in order, none overlapping."""
    return [
        personal._replace(start=start + personal.start, end=start + personal.end)
        for start, block in blocks(text)
        for personal in find_in_block(block, rules)
    ]


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(place, piece): the text in pieces of at most ``BLOCK`` characters, cut where no form is.

    A run of ``BLOCK`` characters without such a place is cut between joined numbers, or at its end.
    """
    start = 0
    while start < len(text):
        end = min(start + BLOCK, len(text))
        if end < len(text):
            kinds = (is_between_forms, is_joint)
            places = ((kind, n) for kind in kinds for n in range(end, start, -1))
            end = next((n for kind, n in places if kind(text, n)), end)
        yield start, text[start:end]
        start = end


def is_between_forms(text: str, place: int) -> bool:
    """Whether no form can hold both ``text[place - 1]`` and ``text[place]``.

    A space stands only inside numbers, after a digit or a bracket, and inside an IBAN, which has
    groups of four.
    """
    before = text[place - 1]
    if before in ENDS_A_FORM:
        return True
    group = text[max(place - 5, 0) : place - 1]
    in_iban = len(group) == 4 and group.isalnum() and group.isupper() and text[place].isalnum()
    return before == " " and group[-1:].isalpha() and not in_iban


def is_joint(text: str, place: int) -> bool:
    """Whether numbers that touch may be joined here: 13812345678/13912345678, +86...+86..."""
    return text[place - 1] in "/," or text[place] == "+"


def find_in_block(text: str, rules: Sequence[Rule]) -> list[Found]:
    """Looks again until there is nothing more: a number may touch what another rule finds."""
    taken: list[Found] = []
    while True:
        new, text = find_and_mark(text, rules)
        if not new:
            return sorted(taken, key=lambda personal: personal.start)
        taken += new


def find_and_mark(text: str, rules: Sequence[Rule]) -> tuple[list[Found], str]:
    """What each rule finds, and the text with ``[[[]`` written over it.

    To the rules that is the same as ``[KIND]``. So scrubbed text has nothing left to find, and all
    places stay where they are.
    """
    new = []
    for kind, form, check in rules:
        at = 0
        while match := form.search(text, at):
            start, at = match.span()
            if form is URL.form:
                # A full stop or bracket after an address belongs to the sentence.
                at = start + len(match.group().rstrip(".,;:!?)]}"))
            if check(text[start:at]):
                new.append(Found(kind, start, at))
                text = text[:start] + "[" * (at - start - 1) + "]" + text[at:]
    return new, text


def scrub(text: str, rules: Sequence[Rule] = TRAINING_TEXT) -> str:
    """The text with ``[KIND]`` in place of what ``find`` finds. Scrubbed text stays as it is."""
    parts, at = [], 0
    for kind, start, end in find(text, rules):
        parts += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*parts, text[at:]])


def scrub_typed(text: str) -> str:
    """``scrub`` of what people type, before it is stored."""
    return scrub(text, TYPED)
