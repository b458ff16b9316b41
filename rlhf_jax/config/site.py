"""The labelling site: where it listens, who comes in, what is shown."""

import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from rlhf_jax.config.bounds import Bounds, Positive, check_bounds
from rlhf_jax.config.effect import Main
from rlhf_jax.errors import check

SITE_URL = re.compile(r"https?://[^\s/?#@;\\]+(/[^?#]*)?")
PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*/?")


def is_site_url(url: str) -> bool:
    """Whether ``url`` is https://HOST[:PORT], perhaps with a path, nothing more."""
    try:
        parts = urlsplit(url)
        return bool(SITE_URL.fullmatch(url) and parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        return False


def is_network(text: str) -> bool:
    """Whether ``text`` is an address or a network, 10.0.0.0/8."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class AddressConfig:
    """Where the site is found."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback put a proxy with TLS before it and give ``url``."""
    port: Main[Annotated[int, Bounds(1, 65535)]] = 8420
    """Port to listen on."""
    url: Main[str] = ""
    """Where labelers find the site, if a proxy stands before it. As https://label.example.org, or
    with the prefix that the proxy takes off, https://lab.example.org/label/. Its parts are letters,
    digits, '-', '.', '_' and '~'."""

    def __post_init__(self):
        check_bounds(self, "serve.")
        check(
            not self.url or is_site_url(self.url),
            f"serve.url: found {self.url!r}, expected https://HOST or https://HOST/PREFIX/",
        )
        # Browsers write other paths in other ways than we do, so cookies and links would not fit;
        # and //x in a link is a host.
        prefix = urlsplit(self.url).path
        check(
            PREFIX.fullmatch(prefix) is not None,
            f"serve.url: found the prefix {prefix!r}, which browsers and proxies change: expected "
            "letters, digits, '-', '.', '_' and '~' between single slashes",
        )


@dataclass(frozen=True)
class ScrubConfig:
    """What of people's texts is stored."""

    scrub: bool = True
    """Replace e-mail addresses, phone, card and id numbers in what people type and in prompts."""


@dataclass(frozen=True)
class ServeConfig(ScrubConfig, AddressConfig):
    """The labelling site."""

    token: str = ""
    """The administrator's, of 16 characters or more; empty makes one and keeps it in the loop's
    folder. Other users of the machine see what stands on a command line."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For says who asks (127.0.0.1). Without
    any, clients behind a proxy are not told apart: only accounts are limited."""
    requests_per_second: Positive = 20.0
    """Of one labeler; four times as many at once."""
    lease_minutes: Annotated[float, Bounds(0, 525_600, over=True)] = 30.0
    """How long a task stays in one labeler's hands."""
    guide: Path | None = None
    """A Markdown file that says what a good answer is; guide.zh.md beside guide.md is what readers
    of Chinese see. None: the guide of ``task``."""
    dialogue: bool = False
    """The chat's prompts are whole conversations, not single messages."""

    def __post_init__(self):
        super().__post_init__()
        for network in self.proxies:
            check(
                is_network(network),
                f"serve.proxies: found {network!r}, expected addresses or networks "
                "(127.0.0.1, 10.0.0.0/8) of the proxies in front of the site",
            )
        check(
            bool(self.url) or not self.proxies,
            "serve.proxies: expected serve.url too, where the proxy shows the site",
        )
