"""Where labelers find the site: what links, cookies and checks take from ``--serve.url``."""

from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


def host_of(url: str) -> str | None:
    """The host's name as browsers send it, in lower case and ASCII; None if there is none."""
    try:
        name = urlsplit(url).hostname
        return name and (name if name.isascii() else name.encode("idna").decode())
    except ValueError:  # brackets that do not match, a label too long
        return None


def origin_of(url: str) -> str:
    """scheme://host[:port] as browsers write it in ``Origin``: without the scheme's own port."""
    parts = urlsplit(url)
    host = host_of(url) or ""
    host = f"[{host}]" if ":" in host else host
    own = parts.port in (None, DEFAULT_PORTS.get(parts.scheme))
    return f"{parts.scheme}://{host}" + ("" if own else f":{parts.port}")


def prefix_of(url: str) -> str:
    """The path under which a proxy shows the site, without the slash at its end: "" or /label."""
    return urlsplit(url).path.rstrip("/")
