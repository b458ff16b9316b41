"""A person at the pages of the feedback site, whose browser has no JavaScript."""

import html
import re

from starlette.testclient import TestClient

LOCAL = "http://localhost"
RANKS = {f"rank_{letter}": n for letter, n in zip("ABCD", (2, 1, 2, 4), strict=True)}


class Browser:
    """A signed-in person without JavaScript."""

    def __init__(self, app, token: str | None = "admin-token", *, base=LOCAL, **headers):
        self.http = TestClient(app, base_url=base, headers=headers)
        if token is not None:
            self.http.get("/enter", params={"token": token})
            assert self.http.get("/enter", follow_redirects=False).status_code == 303

    def get(self, path: str, status: int = 200, **query) -> str:
        answer = self.http.get(path, params=query or None)
        assert answer.status_code == status, answer.text
        return answer.text

    def fields(self, page: str) -> dict[str, str]:
        found = re.findall(r'<input type="hidden" name="([\w-]+)" value="([^"]*)"', page)
        return {name: html.unescape(value) for name, value in found}

    def post(self, path: str, page: str, status: int = 200, headers=None, **form) -> str:
        form = {name.replace("_", "-"): value for name, value in form.items()}
        answer = self.http.post(path, data=self.fields(page) | form, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.text
