"""The site as a Starlette application. Needs neither JAX nor a model."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from rlhf_jax.feedback.web import account_pages, api, chat_pages, dashboard_pages, label_pages
from rlhf_jax.feedback.web import team_pages as team
from rlhf_jax.feedback.web.address import host_of
from rlhf_jax.feedback.web.render import HERE, render, text_of
from rlhf_jax.feedback.web.security import HEADERS, Walls
from rlhf_jax.feedback.web.site import Site, page

STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The files that are served, by name: no path of a request ever reaches the disk."""


async def static(request: Request) -> Response:
    """A file of the pages; those that are named, and no other."""
    name = request.path_params["name"]
    if name not in STATIC:
        return await not_found(request, None)
    return FileResponse(HERE / "static" / name, media_type=STATIC[name])


async def not_found(request: Request, error) -> Response:
    """The page for a path that is none, also where a proxy has left its prefix on."""
    root = request.app.state.site.root
    left_on = root and f"{request.scope['path']}/".startswith(f"{root}/")
    message = text_of(request, "error.prefix" if left_on else "error.not_found", prefix=root)
    return HTMLResponse(render(request, "error.html", account=None, csrf="", message=message), 404)


def create_app(
    site: Site, *, host: str = "127.0.0.1", headers: Sequence[tuple[str, str]] = HEADERS
) -> Starlette:
    """All pages; ``host`` and the host of ``site.url`` are the names it answers to.

    ``headers`` are those of every response that the server does not give by itself.
    """
    get, post = ["GET"], ["POST"]
    both = [*get, *post]
    routes = [
        Route("/", page(account_pages.home, public=True), methods=get),
        Route("/enter", page(account_pages.enter, public=True, own_check=True), methods=both),
        Route("/join", page(account_pages.join, public=True, own_check=True), methods=both),
        Route("/language", page(account_pages.language, public=True), methods=post),
        Route("/leave", page(account_pages.leave), methods=post),
        Route("/account", page(account_pages.account), methods=get),
        Route("/account", page(account_pages.delete_own), methods=post),
        Route("/label", page(label_pages.label), methods=get),
        Route("/label", page(label_pages.store), methods=post),
        Route("/undo", page(label_pages.undo), methods=post),
        Route("/guide", page(label_pages.put_guide_away), methods=post),
        Route("/chat", page(chat_pages.chat), methods=get),
        Route("/chat", page(chat_pages.act), methods=post),
        Route("/dashboard", page(dashboard_pages.dashboard), methods=get),
        Route("/team", page(team.team, admin=True), methods=get),
        Route("/team", page(team.act, admin=True), methods=post),
        Route("/export", page(team.export, admin=True), methods=get),
        Route("/api/task", api.task, methods=get),
        Route("/api/label", api.label, methods=post),
        Route("/api/status", api.status, methods=get),
        Route("/static/{name}", static, methods=get),
    ]
    hosts = [name for name in (host, host_of(site.url)) if name]

    def client_asks(scope: Scope) -> None:
        site.limits.client_asks(site.client(scope))

    walls = Middleware(Walls, hosts=hosts, client_asks=client_asks, headers=headers)
    app = Starlette(routes=routes, middleware=[walls], exception_handlers={404: not_found})
    # Redirects of the framework name the host that a proxy wrote, and know no prefix.
    app.router.redirect_slashes = False
    app.state.site = site
    return app
