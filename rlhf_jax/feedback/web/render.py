"""Templates in two languages. Every text of a person or a model is escaped, never markup."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from starlette.requests import Request

from rlhf_jax.feedback import plots, visible
from rlhf_jax.feedback.web import reading

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
LANGUAGE_COOKIE, GUIDE_COOKIE = "language", "guide"


def load_catalog(language: str) -> dict[str, str]:
    """The texts of a language, by their keys."""
    return json.loads((HERE / "locales" / f"{language}.json").read_text(encoding="utf-8"))


CATALOGS = {language: load_catalog(language) for language in LANGUAGES}


def choose_language(request: Request) -> str:
    """The cookie's, else the browser's first that there is, else English."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    if chosen in LANGUAGES:
        return chosen
    for part in request.headers.get("accept-language", "").split(","):
        language = part.split(";")[0].strip().lower().split("-")[0]
        if language in LANGUAGES:
            return language
    return LANGUAGES[0]


def percent(value: float | None) -> str:
    """A share with one decimal; a dash for none."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def ago(then: float) -> int:
    """Whole seconds since then; 0 if that is to come."""
    return max(0, round(time.time() - then))


class Duration(NamedTuple):
    """A time in the unit that suits it."""

    unit: str
    """Key of the catalogs: seconds, minutes, hours, days."""
    count: int


def duration(seconds: int | float) -> Duration:
    """In the largest unit of which there are at least two, so that nobody has to divide."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return Duration(unit, round(seconds / length))
    return Duration("seconds", round(seconds))


def figure(value: Mapping[str, Any] | None) -> str:
    """A mean with its interval: 0.27 ± 0.06."""
    if value is None:
        return "–"
    half = value.get("ci", math.nan)
    return f"{value['mean']:.2f}" + (f" ± {half:.2f}" if math.isfinite(half) else "")


def margin(half_width: int | float) -> str:
    """What stands after a share: its interval in points, if it has one."""
    return f"± {100 * half_width:.0f}" if math.isfinite(half_width) else ""


def make_environment() -> jinja2.Environment:
    """The templates, with what they may call."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        # A misspelt name is an error, and no empty place on a page.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names: dict[str, Any] = environment.globals
    names |= {
        "pieces": visible.pieces,
        "is_code": reading.is_code,
        "plot_size": (plots.WIDTH, plots.HEIGHT),
        "plot_left": plots.LEFT,
        "languages": LANGUAGES,
    }
    environment.filters |= {
        "ago": ago,
        "duration": duration,
        "figure": figure,
        "margin": margin,
        "percent": percent,
    }
    return environment


ENVIRONMENT = make_environment()


def render(request: Request, template: str, **values: Any) -> str:
    """A page in the reader's language; ``t(key, name=...)`` gives its texts."""
    language = choose_language(request)
    catalog = CATALOGS[language]

    def t(key: str, **names: Any) -> str:
        return catalog[key].format(**names)

    return ENVIRONMENT.get_template(template).render(
        t=t,
        language=language,
        root=request.app.state.site.root,
        path=request.scope["path"],
        **values,
    )


def text_of(request: Request, key: str, **names: Any) -> str:
    """A text in the language of a request, its names filled in."""
    return CATALOGS[choose_language(request)][key].format(**names)
