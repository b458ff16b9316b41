"""The proxies' configurations of docs/feedback.md, run: everything works through them.

Changed are only ports, certificates and where logs go, and the seconds of timeouts.
"""

import contextlib
import html
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import NamedTuple

import pytest
from feedback_site import ROOT, fill, running
from local_server import free_port

from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import read_labels

pytest.importorskip("uvicorn", reason="the server needs the extra feedback")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CADDY = shutil.which("caddy")
SECONDS = 1
"""In place of the page's 10 for headers."""
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate"),
]


class Proxied(NamedTuple):
    """A site behind a proxy."""

    database: object
    host: str
    root: str
    port: int
    log: Path

    @property
    def origin(self) -> str:
        return f"https://{self.host}:{self.port}"

    def connect(self) -> ssl.SSLSocket:
        """As this site's name, which no name server knows."""
        context = ssl._create_unverified_context()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(connection, server_hostname=self.host)

    def ask(self, method: str, path: str, form: dict | None = None, **headers: str):
        """(status, headers, text) of a request; cookies are the asker's."""
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.sock = self.connect()
        body = None if form is None else urllib.parse.urlencode(form)
        if body is not None:
            headers |= {"Content-Type": "application/x-www-form-urlencoded"}
            headers = {"Origin": self.origin} | headers
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, response.headers, text


def documented(kind: str) -> str:
    """The only configuration of this kind on the page."""
    page = (ROOT / "docs" / "feedback.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"```{kind}\n(.*?)```", page, re.S)
    return text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:label.example.org,DNS:lab.example.org"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj"]
    command += ["/CN=label.example.org", "-addext", names, "-keyout", "label.key", "-out"]
    subprocess.run([*command, "label.pem"], cwd=folder, check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def nginx(folder: Path, certificate: Path, port: int, upstream: int):
    text = documented("nginx").replace("listen 443", f"listen 127.0.0.1:{port}")
    text = text.replace("127.0.0.1:8420", f"127.0.0.1:{upstream}").replace("10s", f"{SECONDS}s")
    text = text.replace("/etc/nginx", str(certificate)).replace("/var/log/nginx", str(folder))
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    around = "daemon off;\nmaster_process off;\nevents {}\nhttp {\n"
    (folder / "nginx.conf").write_text(f"pid {folder}/pid;\n{around}{places}{text}}}\n")
    errors = folder / "errors.log"
    command = [NGINX, "-p", str(folder), "-c", "nginx.conf", "-e", str(errors)]
    with process(command, port, errors):
        yield folder / "label.log"


@contextlib.contextmanager
def caddy(folder: Path, certificate: Path, port: int, upstream: int):
    text = documented("caddy").replace("127.0.0.1:8420", f"127.0.0.1:{upstream}")
    text = text.replace("10s", f"{SECONDS}s").replace("{\n", "{\n    admin off\n", 1)
    keys = f"{certificate}/label.pem {certificate}/label.key"
    text = re.sub(r"(?m)^(\S+\.org) {", rf"https://\1:{port} {{\n    tls {keys}", text)
    (folder / "Caddyfile").write_text(text)
    errors = folder / "errors.log"
    command = [CADDY, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with process(command, port, errors):
        yield folder / "none.log"


@contextlib.contextmanager
def process(command: list[str], port: int, errors: Path):
    with errors.open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            ended = started.poll() is not None or time.monotonic() > deadline
            assert not ended, errors.read_text()
            time.sleep(0.05)
        yield
    finally:
        started.terminate()
        started.wait(30)


PROXIES = [
    pytest.param(nginx, marks=pytest.mark.skipif(NGINX is None, reason="needs nginx"), id="nginx"),
    pytest.param(caddy, marks=pytest.mark.skipif(CADDY is None, reason="needs caddy"), id="caddy"),
]


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request):
    return request.param


@pytest.fixture(scope="module", params=["label.example.org/", "lab.example.org/label/"])
def site(request, proxy, certificate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    host, _, prefix = request.param.partition("/")
    port, store = free_port(), folder / "store.sqlite"
    url = f"https://{host}:{port}/{prefix}"
    with (
        running(store, url=url, proxies=["127.0.0.1"]) as (upstream, _),
        proxy(folder, certificate, port, upstream) as log,
    ):
        yield Proxied(open_database(store), host, f"/{prefix}".rstrip("/"), port, log)


def cookies(headers) -> list[str]:
    return headers.get_all("Set-Cookie") or []


def sign_in(site: Proxied, token: str) -> str:
    """The session's cookie, by a link and the page that it leads to."""
    status, headers, text = site.ask("GET", f"{site.root}/enter?token={token}")
    assert status == 200 and f"url={site.root}/enter" in text
    (offer,) = cookies(headers)
    status, headers, _ = site.ask("GET", f"{site.root}/enter", Cookie=offer.split(";")[0])
    assert status == 303 and headers["Location"] == f"{site.root}/label"
    session = cookies(headers)[0]
    assert f"Path={site.root or '/'};" in session and "Secure" in session
    return session.split(";")[0]


def test_a_label_through_the_proxy(site):
    fill(site.database, 1)
    _, token = accounts.add_labeler(site.database, "Ann")
    cookie = sign_in(site, token)
    status, headers, page = site.ask("GET", f"{site.root}/label", Cookie=cookie)
    assert status == 200 and "content-security-policy" in headers
    links = re.findall(r'(?:href|src|action|data-live|data-next)="(/[^"]*)"', page)
    assert len(links) > 5 and all(link.startswith(f"{site.root}/") for link in links)
    for link in {html.unescape(link) for link in links if "/static/" in link}:
        assert site.ask("GET", link)[0] == 200
    form = dict(re.findall(r'<input type="hidden" name="([\w-]+)" value="([^"]*)"', page))
    form |= {f"rank-{letter}": 1 for letter in "ABCD"} | {"action": "rank"}
    by_script = {"Accept": "application/json", "Cookie": cookie}
    for origin in ("https://evil.example", f"https://{site.host}", "http://127.0.0.1"):
        assert site.ask("POST", f"{site.root}/label", form, Origin=origin, **by_script)[0] == 403
    status, _, text = site.ask("POST", f"{site.root}/label", form, **by_script)
    assert status == 200 and json.loads(text)["next"].startswith(
        f"{site.root}/label?did=saved&task="
    )
    assert len(read_labels(site.database)) == 1
    status, headers, _ = site.ask("POST", f"{site.root}/leave", form, Cookie=cookie)
    assert status == 303 and headers["Location"] == f"{site.root}/enter"
    assert f"Path={site.root or '/'};" in f"{cookies(headers)[0]};"


def test_no_token_is_in_the_log(site):
    _, token = accounts.add_labeler(site.database, "Ben")
    invite = accounts.invite(site.database)
    sign_in(site, token)
    site.ask("GET", f"{site.root}/join?invite={invite}")
    site.ask("GET", f"{site.root}/label?mark=logged")
    # A proxy may write its line after it has answered.
    deadline = time.monotonic() + 10
    while site.log.exists() and "mark=logged" not in site.log.read_text():
        assert time.monotonic() < deadline, site.log.read_text()
        time.sleep(0.05)
    text = site.log.read_text() if site.log.exists() else ""
    assert token not in text and invite not in text


def test_a_client_cannot_lie_about_its_address(site):
    """All guesses are counted for this machine, whatever each says; and nobody else's are."""
    ask = lambda n: site.ask(
        "GET", f"{site.root}/enter?token=wrong{n}", **{"X-Forwarded-For": f"6.6.6.{n}"}
    )[0]
    codes = [ask(n) for n in range(40)]
    assert codes[0] == 401 and 429 in codes


def test_headers_that_come_slowly_end(site):
    """The site itself would wait for them without end: that is for the proxy to limit."""
    connection = site.connect()
    connection.settimeout(60)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    assert b"200 OK" not in connection.recv(1000)  # closed, perhaps with a word
