"""/: the playground, and /docs: the API's reference to try. All their files are on this machine."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi_swagger import patch_fastapi

_FILES = Path(__file__).parents[1] / "playground"
# Our own scripts and styles, pictures that they were sent, and nothing else.
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
    """Serve the playground and the reference."""

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return FileResponse(_FILES / "index.html", headers=_HEADERS)

    app.mount("/playground", _Files(directory=_FILES), name="playground")
    patch_fastapi(app, redirect_from_root_to_docs=False)


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response
