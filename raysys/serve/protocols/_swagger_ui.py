"""The page of an application's documents: Swagger UI, with its assets from a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from raysys.imports import lazy_import

if TYPE_CHECKING:
    from raysys.serve._application import Application

fastapi_docs = lazy_import("fastapi.openapi.docs")

# Files of Swagger UI that the page loads, and their types.
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}


class Page(NamedTuple):
    """A response body other than JSON, and its type."""

    content_type: str
    body: bytes


def page(application: Application) -> Page:
    """The page, which loads everything from the application: browsers may be offline."""
    folder = f"{application.route}/docs"
    response = fastapi_docs.get_swagger_ui_html(
        openapi_url=f"{application.route}/openapi.json", title=application.name,
        swagger_js_url=f"{folder}/swagger-ui-bundle.js",
        swagger_css_url=f"{folder}/swagger-ui.css",
        swagger_favicon_url=f"{folder}/favicon-32x32.png",
    )  # fmt: skip
    return Page("text/html; charset=utf-8", bytes(response.body))


def asset(name: str) -> Page:
    """One of the files."""
    spec = find_spec("flask_swagger_ui")  # not imported: it would load Flask
    assert spec is not None
    assert spec.origin is not None
    return Page(ASSETS[name], (Path(spec.origin).parent / "dist" / name).read_bytes())
