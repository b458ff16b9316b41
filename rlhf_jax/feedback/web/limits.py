"""How often: requests of a client and of an account, and credentials that were none.

A client is an address (of IPv6 its /64, of which one subscriber has all). Behind a proxy it is what
the proxy says in X-Forwarded-For, if ``--serve.proxies`` names the proxy. If not, everybody would
be the proxy's address, and one stranger's guesses would lock out all: then clients are unknown, and
only accounts are limited.
"""

import time
from collections.abc import Sequence
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import Scope

FAILURES_PER_SECOND, FAILURES_BURST = 0.5, 10.0
PEOPLE_PER_CLIENT = 25
"""Behind one address, at their full rate."""
MOST_BUCKETS = 10_000
FORWARDED = "x-forwarded-for"


class Refused(Exception):
    """A request that is not let in."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status, self.why = status, why


class Buckets:
    """Token buckets by name: ``per_second`` on average, ``burst`` at once."""

    def __init__(self, per_second: float, *, burst: float):
        self._rate, self._burst = per_second, burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float | None = None) -> bool:
        """Take one token of this name's bucket; False where there is none."""
        now = time.monotonic() if now is None else now
        level = self._level(name, now)
        # Taken out and put back: a dict keeps the order, so the first is the one that asked longest
        # ago.
        self._buckets.pop(name, None)
        self._buckets[name] = (max(level - 1, 0.0), now)  # last: newest
        while len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        return level >= 1

    def is_empty(self, name: str, now: float | None = None) -> bool:
        """Whether this name's bucket has no token left."""
        return self._level(name, time.monotonic() if now is None else now) < 1

    def _level(self, name: str, now: float) -> float:
        # Filled when it is looked at, so that no clock has to run.
        level, then = self._buckets.get(name, (self._burst, now))
        return min(self._burst, level + (now - then) * self._rate)


class Limits:
    """The buckets of one server, by client (None: unknown) and by account."""

    def __init__(self, per_second: float):
        self._clients = Buckets(PEOPLE_PER_CLIENT * per_second, burst=100 * per_second)
        self._accounts = Buckets(per_second, burst=4 * per_second)
        self._failures = Buckets(FAILURES_PER_SECOND, burst=FAILURES_BURST)

    def client_asks(self, client: str | None) -> None:
        """Count a request of a client. Raises Refused where there are too many."""
        if client is not None and not self._clients.take(client):
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many requests, wait a second")

    def account_asks(self, account: str) -> None:
        """Count a request of an account. Raises Refused where there are too many."""
        if not self._accounts.take(account):
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many requests, wait a second")

    def may_try(self, client: str | None, account: str | None) -> None:
        """Raise Refused, before a credential is looked at, after too many that were none."""
        if any(map(self._failures.is_empty, names(client, account))):
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many attempts, wait some seconds")

    def failed(self, client: str | None, account: str | None) -> None:
        """A credential was none, wherever it was shown."""
        for name in names(client, account):
            self._failures.take(name)


def names(client: str | None, account: str | None) -> list[str]:
    """Under which names tries are counted: the client's, the account's, or both."""
    named = {"client": client, "account": account}
    return [f"{kind} {name}" for kind, name in named.items() if name is not None]


def client_of(scope: Scope, *, behind_proxy: bool, proxies: Sequence[str]) -> str | None:
    """Who asks, as the limits name them; None if only a proxy is known."""
    peer = (scope.get("client") or ("",))[0]
    if not behind_proxy:
        return subscriber(peer)
    # Anybody may write X-Forwarded-For; it is believed of a known proxy alone.
    if not is_one_of(peer, proxies):
        return subscriber(peer) if proxies else None
    said = [x.strip() for x in ",".join(Headers(scope=scope).getlist(FORWARDED)).split(",")]
    # The proxy nearest to us wrote the last one; what stands before it anybody may have written.
    others = [address for address in said if not is_one_of(address, proxies)]
    asker = others[-1] if others else said[0]
    return subscriber(asker) if is_address(asker) else None


def subscriber(address: str) -> str:
    """An address, or of IPv6 the network that one subscriber has."""
    if not is_address(address):
        return address
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(ip_network((parsed, 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def is_one_of(address: str, networks: Sequence[str]) -> bool:
    """Whether an address is in one of the networks."""
    return is_address(address) and any(
        ip_address(address) in ip_network(network, strict=False) for network in networks
    )


def is_address(text: str) -> bool:
    """Whether this is an address of IPv4 or IPv6."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
