"""`POST /v1/images/generations`, as OpenAI's clients and the programs built on them send it."""

import asyncio
import base64
import difflib
import hmac
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.images import png
from glide_jax.ui.batching import Batches, Done, QueueFull
from glide_jax.ui.models import Found
from glide_jax.ui.request import Request, check_fit, checked
from glide_jax.ui.service import Service, entries

PATH = "/v1/images/generations"
# What OpenAI's models take beside these has no meaning here, and is sent by programs that cannot know it.
_WITHOUT_EFFECT = ("background", "moderation", "output_compression", "quality", "style", "user")
_OWN = ("model", "n", "output_format", "prompt", "response_format", "size", "stream")
_OTHERS = ("negative_prompt", "upsampler")
_SECONDS_BETWEEN_LOOKS = 1.0

Account = tuple[str, str]


class NoSuchUser(GlideError):
    """The API key is none of those that may use the page."""


class NoSuchModel(GlideError):
    """There is no base model of the name asked for."""


class ImagesApi:
    """The endpoint, for a Starlette application.

    Args:
        service: what the page shares with it: models, limits and defaults.
        accounts: users and passwords, `USER:PASSWORD` being a client's API key; None lets everyone in.
    """

    def __init__(self, service: Service, accounts: Sequence[Account] | None = None) -> None:
        self._service, self._accounts = service, accounts
        self._batches = Batches(service.models, service.limits)

    async def answer(self, http: Any) -> Any:
        """Answers a `starlette.requests.Request` with images, or with an error in OpenAI's form."""
        from starlette.responses import JSONResponse, Response  # noqa: PLC0415

        body = await http.body()
        try:
            self._check_account(http.headers.get("authorization", ""))
            done = await self._generated(http, body)
        except Exception as error:
            return _refusal(error)
        if done is None:
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(await asyncio.to_thread(_images, done))

    async def _generated(self, http: Any, sent: bytes) -> Done | None:
        """The images of a request; None if its client has gone."""
        try:
            body = json.loads(sent)
        except (ValueError, RecursionError) as error:
            raise GlideError("the request must be a JSON object") from error
        request = await asyncio.to_thread(self._checked, body)
        future = asyncio.wrap_future(self._batches.submit(request, any_seed=body.get("seed") is None))
        while not (await asyncio.wait([future], timeout=_SECONDS_BETWEEN_LOOKS))[0]:
            if await http.is_disconnected():
                future.cancel()
                return None
        return future.result()

    def _check_account(self, authorization: str) -> None:
        if self._accounts is None:
            return
        scheme, _, key = authorization.partition(" ")
        allowed = [f"{user}:{password}".encode() for user, password in self._accounts]
        # All are compared, in constant time, so that how long it takes tells nothing.
        found = [hmac.compare_digest(key.strip().encode("latin-1"), each) for each in allowed]
        if scheme.lower() != "bearer" or not any(found):
            raise NoSuchUser("no such user: the API key is USER:PASSWORD")

    def _checked(self, body: Any) -> Request:
        request = asked(self._service, body)
        check_fit(
            self._service.models.pipeline(request.base, request.upsampler), request, self._service.limits.max_steps
        )
        return request


def asked(service: Service, body: Any) -> Request:
    """What a client's JSON asks for: OpenAI's names, and the page's settings by theirs.

    Args:
        service: models, limits and defaults.
        body: `prompt`; `n` images, 1 if left out; `size` as "256x256", which decides whether and by what the images are
            upsampled, as otherwise does `upsampler`; `model`, a base model's name; any setting of `service.fields`.

    Raises:
        GlideError: no such setting, model or size, or a value out of bounds.
    """
    if not isinstance(body, dict):
        raise GlideError("the request must be a JSON object")
    settings = service.fields.keys() - {"num_images", "candidates", "top_k", "strength"}
    known = {*settings, *_OWN, *_OTHERS, *_WITHOUT_EFFECT}
    if unknown := sorted(body.keys() - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise GlideError(f"unknown: {unknown[0][:60]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for name, only in (("response_format", "b64_json"), ("output_format", "png")):
        if body.get(name) not in (None, only):
            raise GlideError(f"{name} must be {only}")
    if body.get("stream"):
        raise GlideError("stream must be false: images come when they are finished")
    base = _model(service, body.get("model"))
    sent = {name: body[name] for name in (*settings, *_OTHERS, "prompt") if name in body}
    own = {"base": base.name, "num_images": 1 if body.get("n") is None else body["n"]}
    count = service.fields["num_images"]._replace(name="n")
    values = {"upsampler": _upsampler(service, base, body)} | sent | own
    return checked("draw", values, service.fields | {"num_images": count})


def _model(service: Service, name: Any) -> Found:
    bases = {found.name: found for found in service.models.bases}
    wanted = service.base if name is None else str(name)
    if wanted not in bases:
        raise NoSuchModel(f"no model {wanted[:60]!r} here; there are: {', '.join(bases) or 'none'}")
    return bases[wanted]


def _upsampler(service: Service, base: Found, body: Mapping[str, Any]) -> str:
    """The upsampler by which images of a base model come to the size asked for; "" for none."""
    fitting = [found for found in service.models.upsamplers if found.enlarges == base.image_size]
    # The one that is chosen first comes before others of its size.
    fitting.sort(key=lambda found: found.name != service.upsampler)
    sizes = {f"{base.image_size}x{base.image_size}": ""}
    for found in fitting:
        sizes.setdefault(f"{found.image_size}x{found.image_size}", found.name)
    size = body.get("size")
    if size in (None, "auto"):
        return service.upsampler if any(found.name == service.upsampler for found in fitting) else ""
    if str(size) not in sizes:
        raise GlideError(f"size must be one of {', '.join(sizes)} for model {base.name}")
    if "upsampler" in body:
        raise GlideError("size and upsampler say the same: give one of them")
    return sizes[str(size)]


def _images(done: Done) -> dict[str, Any]:
    return {"created": int(time.time()), "data": [
        {
            "b64_json": base64.b64encode(png(each.pixels, entries(done.request, each))).decode(),
            "seed": done.request.seed,
            "index": each.number,
        }
        for each in done.images
    ]}  # fmt: skip


# Status and code in an answer, of errors that are not merely a wrong request.
_CODES: dict[type[Exception], tuple[int, str]] = {
    NoSuchUser: (401, "invalid_api_key"),
    NoSuchModel: (404, "model_not_found"),
    QueueFull: (429, "rate_limit_exceeded"),
}


def _refusal(error: Exception) -> Any:
    from starlette.responses import JSONResponse  # noqa: PLC0415

    status, code = _CODES.get(type(error), (400, None))
    said, kind = str(error), "invalid_request_error"
    if not isinstance(error, GlideError):
        traceback.print_exception(error)
        status, said, kind = 500, "an internal error occurred; the server's log has it", "server_error"
    return JSONResponse({"error": {"message": said, "type": kind, "param": None, "code": code}}, status)
