"""/: the playground, and /docs: the API's reference to try. All their files are on this machine."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_swagger import patch_fastapi

from service.http.public_address import public_address
from service.http.routes.client import client_wheel
from service.settings import Settings

_FILES = Path(__file__).parents[2] / "playground"
# Our own scripts and styles, images that they were sent, and nothing else.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time, and answered 304: upgrades show at once
}


def install(app: FastAPI) -> None:
    """Serve the playground, the reference and its OpenAPI document.

    Their pages name each other and their files relative to themselves, so that they work behind
    any proxy. FastAPI's own name them as this process is addressed, which is not how the browser
    got here.
    """

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return FileResponse(_FILES / "index.html", headers=_HEADERS)

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        settings: Settings = request.app.state.settings
        address = public_address(request.scope, settings.public_url, settings.trusted_proxies)
        wheel = await client_wheel()
        info = {
            **app.openapi()["info"],
            "description": f"The client for Python: `pip install {address}/client/{wheel.name}`",
        }
        return JSONResponse({**app.openapi(), "info": info, "servers": [{"url": address}]})

    @app.get("/docs", include_in_schema=False)
    async def reference() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css",
            swagger_favicon_url="swagger/favicon-32x32.png",
            swagger_ui_parameters={
                "tryItOutEnabled": True,
                "persistAuthorization": True,
                "filter": True,
                "displayRequestDuration": True,
            },
        )

    app.mount("/playground", _Files(directory=_FILES), name="playground")
    # For the files of Swagger UI; its page is the one above, which comes first.
    patch_fastapi(app, redirect_from_root_to_docs=False)


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response
