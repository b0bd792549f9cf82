"""Make pages of HTML that stand alone: one file, no request, light and dark.

What comes from models and files is hostile. Templates escape it, data of charts is JSON in which
no tag can end, and the page's policy lets no script run but its own two and nothing be fetched.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgeq.files.ownership import PAGE_MARK
from edgeq.pages import shown
from edgeq.pages.charts import Chart
from edgeq.version import __version__

LIBRARY = "vendor/echarts.common.min.js"
SCRIPT = "templates/page.js"
STYLE = "templates/style.css"
CHARTS = ("position", "windows", "sizes", "budget", "errors", "strength")
"""The charts that templates ask for; a page has some of them."""


def render(template: str, charts: Sequence[Chart | None], **data: Any) -> bytes:
    """Fill a template; charts that are None are left out. Equal data gives equal bytes."""
    known = {chart.id: chart for chart in charts if chart is not None}
    scripts = [Markup(read(name)) for name in (LIBRARY, SCRIPT)]
    page = environment().get_template(template)
    text = page.render(
        charts=dict.fromkeys(CHARTS) | known,
        drawn=[chart.plain() for chart in known.values()],
        scripts=scripts,
        style=Markup(read(STYLE)),
        policy=policy(scripts),
        mark=Markup(PAGE_MARK.decode()),
        version=__version__,
        **data,
    )
    # half a surrogate pair, from the name of a file, is no text
    return text.encode("utf-8", "replace")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Set jinja up so that all text is escaped, and what is missing is an error."""
    made = Environment(
        loader=PackageLoader("edgeq.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["shown"] = shown
    return made


@lru_cache(maxsize=8)
def read(name: str) -> str:
    """Read a file that ships with pages."""
    return files("edgeq.pages").joinpath(name).read_text(encoding="utf-8")


def policy(scripts: Sequence[str]) -> str:
    """Write the policy of a page: its own scripts, by their hashes, and no request at all."""
    hashes = [f"'sha256-{base64.b64encode(digest(text)).decode()}'" for text in scripts]
    rules: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": " ".join(hashes),
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def digest(text: str) -> bytes:
    """Hash a script as browsers do."""
    return hashlib.sha256(text.encode("utf-8")).digest()
