"""Personal data out of prompts, by pattern: e-mail, phone, card, account and id numbers, addresses.

    scrub("mail me at jo@example.org")  ->  "mail me at [EMAIL]"

Numbers that carry a check digit are replaced only when it is right. Names are not found: no
pattern can, so people must be told not to enter them.

Every repeat is bounded, so the time grows with the text and no faster, whatever somebody types.
"""

import ipaddress
import re
from collections.abc import Callable

# Lengths of RFC 5321 and RFC 1035: 64 characters before the @, 63 in a label.
EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,32}")
SECRET_URL = re.compile(r"\b\w{1,32}://[^\s/:@]{1,256}:[^\s/@]{1,256}@\S{1,2048}")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
CHINESE_ID = re.compile(r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])")
CARD = re.compile(r"(?<![\d+-])\d(?:[ -]?\d){12,18}(?![\d-])")
US_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
IP6 = re.compile(r"(?<![\w:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
CHINESE_MOBILE = re.compile(r"(?<!\d)(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)")
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![\w-])"
)


def scrub(text: str) -> str:
    """``text`` with personal data replaced by its kind in brackets."""
    for pattern, kind, is_real in PATTERNS:

        def keep_or_replace(found, kind=kind, is_real=is_real):
            return f"[{kind}]" if is_real(found.group()) else found.group()

        text = pattern.sub(keep_or_replace, text)
    return text


def luhn(number: str) -> bool:
    """Whether the last digit of a card number is the check digit of the others."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def iban(number: str) -> bool:
    """ISO 7064: the number with its first four characters moved to the end is 1 modulo 97."""
    compact = number.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def chinese_id(number: str) -> bool:
    """GB 11643: the last of 18 characters follows from the others, modulo 11."""
    total = sum(int(d) * (2 ** (17 - n) % 11) for n, d in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def ip_address(text: str) -> bool:
    """Whether this is an address of IPv4 or IPv6; two colons alone are none."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text not in ("::",)


def always(text: str) -> bool:
    """True: a form that needs no further check."""
    return True


PATTERNS: tuple[tuple[re.Pattern, str, Callable[[str], bool]], ...] = (
    (SECRET_URL, "URL", always),
    (EMAIL, "EMAIL", always),
    (IBAN, "IBAN", iban),
    (CHINESE_ID, "ID", chinese_id),
    (CHINESE_MOBILE, "PHONE", always),
    (CARD, "CARD", luhn),
    (US_SSN, "ID", always),
    (IP4, "IP", ip_address),
    (IP6, "IP", ip_address),
    (PHONE, "PHONE", always),
)
