"""The explorer's web server: routes over an `Explorer`, and `explore`, which serves it until it is interrupted.

Label maps and confidences travel as PNGs whose gray values are the numbers, numbers of patches as little-endian
binary. The page itself is in `page/`.
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from importlib import resources
from typing import Any, Final

import anyio
import numpy as np
import numpy.typing as npt
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meanshifter.app.explorer import Explorer, Job
from meanshifter.app.gallery import MAX_UPLOAD, Images
from meanshifter.app.label_maps import shown_size
from meanshifter.app.same_origin import SameOrigin, allowed_names, is_loopback
from meanshifter.app.tokens import Tokens
from meanshifter.data.labels import Labels
from meanshifter.errors import InputError, is_out_of_memory, summarize_error
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.resolve import Model

PORT: Final = 8000
FILES: Final = {
    "index.html": "text/html",
    "explorer.css": "text/css",
    "explorer.js": "text/javascript",
    "drawing.js": "text/javascript",
    "panel.js": "text/javascript",
    "side.js": "text/javascript",
}
"""What `page/` holds."""
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
POLL: Final = 0.05
"""Seconds between looks at a computation in progress."""


def explore(
    models: Model | Predictor | Sequence[Model | Predictor] | Mapping[str, Model | Predictor],
    images: Images | None = None,
    *,
    steps: int | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    say: Callable[[str], object] = print,
) -> None:
    """Serve the explorer until Ctrl-C, which raises KeyboardInterrupt.

    Args:
        models: as `Explorer`.
        images: as `Explorer`.
        steps: as `Explorer`.
        host: the address to listen on; any other than a loopback address lets other machines see the images.
        port: 0 takes a free one.
        say: called with the address of the page.

    Raises:
        InputError: as `Explorer`, or an address that cannot be bound.
    """
    with bind(host, port) as bound, closing(Explorer(models, images, steps=steps)) as explorer:
        say(f"explorer: {address(bound)}  (Ctrl-C stops it)")
        if not is_loopback(host):
            say(f"--host {host}: whoever reaches this port sees the images and can use the models")
        server(explorer, host).run(sockets=[bound])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address does not exist on this machine, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port: {port}; expected 1 to 65535, or 0 for a free port")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot be bound ({summarize_error(error)}); use --port 0 for a free port"
        ) from error


def address(bound: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def server(explorer: Explorer, host: str = "127.0.0.1") -> uvicorn.Server:
    """A server that runs on a socket of `bind`, ``server.run(sockets=[bound])``, until `should_exit` is set."""
    app = create_app(explorer, allowed_names(host))
    settings = {"log_level": "critical", "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 2}
    return uvicorn.Server(uvicorn.Config(app, server_header=False, **settings))  # type: ignore[arg-type]


def create_app(explorer: Explorer, names: frozenset[str] | None) -> Starlette:
    """The ASGI application; requests for other hosts than `names` (None: than IP addresses) are refused."""
    routes = Routes(explorer)
    return Starlette(
        routes=[
            Route("/", routes.page),
            Route("/page/{name}", routes.page),
            Route("/api/state", routes.state),
            Route("/api/images", routes.upload, methods=["POST"]),
            Route("/api/picture", routes.picture),
            Route("/api/truth", routes.truth),
            Route("/api/read", routes.read, methods=["POST"]),
            Route("/api/labels", routes.labels),
            Route("/api/confidence", routes.confidence),
            Route("/api/tokens", routes.tokens),
            Route("/api/plane", routes.plane),
            Route("/api/modes", routes.modes),
            Route("/api/patch", routes.patch),
        ],
        middleware=[Middleware(SameOrigin, names=names, headers=HEADERS)],
        exception_handlers={InputError: _refuse, KeyError: _missing, Exception: _fail},
    )


class Routes:
    """What each address answers. Functions that are not asynchronous run in threads."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self._page = {name: resources.files("meanshifter.app").joinpath("page", name).read_bytes() for name in FILES}

    def page(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params.get("name", "index.html")
        return Response(self._page[name], media_type=FILES[name])

    def state(self, request: Request) -> Response:
        """The models and images."""
        return JSONResponse(self.explorer.describe())

    async def upload(self, request: Request) -> Response:
        """Keep the body as an image, ?name="""
        data, too_large = bytearray(), f"image: more than {MAX_UPLOAD // 2**20} MB; put it into the folder of images"
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_UPLOAD:
                return _error(413, too_large)
        name = request.query_params.get("name", "image.png")
        key, entry = await anyio.to_thread.run_sync(self.explorer.gallery.add, name, bytes(data))
        return JSONResponse(self.explorer.describe_image(key, entry))

    def picture(self, request: Request) -> Response:
        """An image as JPEG, ?image="""
        return _encoded(self.explorer.picture(request.query_params["image"]), "JPEG", quality=92)

    def truth(self, request: Request) -> Response:
        """The ground truth of an image, ?image="""
        return labels_png(self.explorer.truth(request.query_params["image"]))

    async def read(self, request: Request) -> Response:
        """Compute label maps, ?model=&image=: lines of JSON with the share that is done, and at last their sizes."""
        model, key = request.query_params["model"], request.query_params["image"]
        job = self.explorer.start(model, key)
        return StreamingResponse(self._follow(job), media_type="application/x-ndjson")

    async def _follow(self, job: Job) -> AsyncIterator[str]:
        with job:
            while not job.future.done():
                yield json.dumps({"share": job.share}) + "\n"
                await anyio.sleep(POLL)
        error = job.future.exception()
        if error is not None:
            yield json.dumps({"error": _said(error)}) + "\n"
            return
        maps = job.future.result()
        shown = shown_size(*maps.size)
        facts = {"size": maps.size, "shown": shown, "stride": maps.stride, "steps": maps.steps, "limited": maps.limited}
        yield json.dumps(facts) + "\n"

    def labels(self, request: Request) -> Response:
        """A label map, ?model=&image=&step="""
        asked = request.query_params
        return labels_png(self.explorer.maps(asked["model"], asked["image"]).labels(_whole(asked, "step")))

    def confidence(self, request: Request) -> Response:
        """Probabilities of the winner in 255ths, ?model=&image=&step="""
        asked = request.query_params
        found = self.explorer.maps(asked["model"], asked["image"]).confidence(_whole(asked, "step"))
        return _encoded(Image.fromarray(found), "PNG", compress_level=1)

    def tokens(self, request: Request) -> Response:
        """The grid of the tokens, and where they are in the image, ?model=&image=&y=&x="""
        tokens = self._tokens(request.query_params)
        y, x = tokens.region.scale
        return JSONResponse(
            {
                "grid": tokens.grid,
                "region": tokens.region.in_image(),
                "patch": [tokens.patch_size * y, tokens.patch_size * x],
                "layers": tokens.layers,
                "explained": tokens.explained,
            }
        )

    def plane(self, request: Request) -> Response:
        """(L+1, N, 2) float32 in the plane, ?model=&image=&y=&x="""
        return _binary(self._tokens(request.query_params).plane.astype("<f4"))

    def modes(self, request: Request) -> Response:
        """(N,) uint16 modes, ?model=&image=&y=&x=&step="""
        tokens = self._tokens(request.query_params)
        return _binary(tokens.modes(_within(request.query_params, "step", tokens.layers)).astype("<u2"))

    def patch(self, request: Request) -> Response:
        """(N,) similarities of a patch and (M,) weights of its next mean, float32, ?model=&image=&y=&x=&step=&token="""
        asked, tokens = request.query_params, self._tokens(request.query_params)
        token, step = _within(asked, "token", tokens.count - 1), _within(asked, "step", tokens.layers)
        weights = tokens.weights(token, step)
        parts = [tokens.similarity(token, step), *([] if weights is None else [weights])]
        return _binary(np.concatenate(parts).astype("<f4"))

    def _tokens(self, asked: QueryParams) -> Tokens:
        point = None
        if "y" in asked and "x" in asked:
            try:
                point = float(asked["y"]), float(asked["x"])
            except ValueError:
                raise InputError(f"y, x: {asked['y']!r:.20}, {asked['x']!r:.20}; expected numbers of pixels") from None
        return self.explorer.tokens(asked["model"], asked["image"], point)


def _whole(asked: QueryParams, name: str) -> int:
    try:
        return int(asked[name])
    except ValueError:
        raise InputError(f"{name}: {asked[name]!r:.20}; expected an integer") from None


def _within(asked: QueryParams, name: str, most: int) -> int:
    value = _whole(asked, name)
    if not 0 <= value <= most:
        raise InputError(f"{name}: {value}; expected 0 to {most}")
    return value


def labels_png(labels: Labels) -> Response:
    """Train ids as gray values, or above 256 of them as red + 256 · green."""
    if labels.dtype == np.uint8:
        return _encoded(Image.fromarray(labels), "PNG", compress_level=1)
    wide = labels.astype("<u2")
    channels = np.stack([wide & 255, wide >> 8, np.zeros_like(wide)], -1).astype(np.uint8)
    return _encoded(Image.fromarray(channels), "PNG", compress_level=1)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> Response:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Response(buffer.getvalue(), media_type=f"image/{kind.lower()}")


def _binary(values: npt.NDArray[Any]) -> Response:
    return Response(values.tobytes(), media_type="application/octet-stream")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


async def _refuse(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _missing(request: Request, error: Exception) -> Response:
    return _error(404, f"{error.args[0]!r:.60}: no such model, image, file or step, or it is missing in the address")


async def _fail(request: Request, error: Exception) -> Response:
    return _error(500, _said(error))


def _said(error: BaseException) -> str:
    """An error in one line, for the page."""
    if isinstance(error, InputError):
        return str(error)
    if is_out_of_memory(error):
        return "image: it does not fit into memory; use smaller windows or another device"
    return f"internal error, please report it: {type(error).__name__}: {summarize_error(error)}"
