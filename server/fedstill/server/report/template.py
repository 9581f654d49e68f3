"""Pages from templates: one style, everything inside the file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fedstill.common.errors import UnsupportedError
from fedstill.server import wording


def need_plots() -> None:
    """Refuse to begin a page that cannot be finished.

    Raises:
        UnsupportedError: if jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2 as _  # noqa: F401
        import matplotlib as __  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            f"report without {error.name}", "expected it to be installed", "pip install 'fedstill[simulations]'"
        ) from None


def render(package: str, template: str, **values: Any) -> str:
    """A page in the style of the report; its template finds `css`, and the wording of numbers as `say`.

    Args:
        package: where the template lies.
        template: its file.
        values: what it shows.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: _source(package, name)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"say": wording, "css": _source("fedstill.server.report", "page.css")}
    return environment.get_template(template).render(**values)


def _source(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")
