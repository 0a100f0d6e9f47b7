"""`POST /v1/images/generations`, compatible with OpenAI's clients."""

import asyncio
import base64
import difflib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.images import png
from glide_jax.ui.batching import Batches, Done, QueueFull
from glide_jax.ui.found import FoundModel
from glide_jax.ui.models import Unloadable, Wanted
from glide_jax.ui.request import SCALES, Choice, Request, check_fit, checked
from glide_jax.ui.service import Service, entries, said

PATH = "/v1/images/generations"
# OpenAI's other parameters have no meaning here, but programs send them.
_WITHOUT_EFFECT = ("background", "moderation", "output_compression", "quality", "style", "user")
_OWN = (
    "lora", "model", "n", "negative_prompt", "output_format", "prompt", "response_format", "size", "stream",
    "upsampler",
)  # fmt: skip
_SECONDS_BETWEEN_LOOKS = 1.0
_LONGEST_BODY = 100_000

Account = tuple[str, str]


class NoSuchUser(GlideError):
    """The API key belongs to no user of the page."""


class TooLarge(GlideError):
    """The body is larger than a prompt and settings can be."""


class NoSuchModel(GlideError):
    """There is no base model of the requested name."""


class ImagesApi:
    """The endpoint, for a Starlette application.

    Args:
        service: models, limits and defaults, shared with the page.
        accounts: users and passwords, `USER:PASSWORD` being a client's API key; None lets everyone in.
    """

    def __init__(self, service: Service, accounts: Sequence[Account] | None = None) -> None:
        self._service, self._accounts = service, accounts
        self._batches = Batches(service.limits, service.models.load)

    async def answer(self, http: Any) -> Any:
        """Answers a `starlette.requests.Request` with images, or with an error in OpenAI's form."""
        from starlette.requests import ClientDisconnect  # noqa: PLC0415
        from starlette.responses import JSONResponse, Response  # noqa: PLC0415

        try:
            self._check_account(http.headers.get("authorization", ""))
            done = await self._generated(http, await _body(http))
        except ClientDisconnect:
            done = None
        except Exception as error:
            return _refusal(error)
        if done is None:
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(await asyncio.to_thread(_images, done))

    async def _generated(self, http: Any, sent: bytes) -> Done | None:
        """The images for a request; None if its client has disconnected."""
        try:
            body = json.loads(sent)
        except (ValueError, RecursionError) as error:
            raise GlideError("the request must be a JSON object") from error
        self._batches.check_room()  # before a model is loaded to find the adapters that fit it
        waiting = self._batches.submit(*await asyncio.to_thread(self._checked, body))
        try:
            future = asyncio.wrap_future(waiting)
            while not (await asyncio.wait([future], timeout=_SECONDS_BETWEEN_LOOKS))[0]:
                if await http.is_disconnected():
                    return None
            return future.result()
        finally:
            waiting.cancel()

    def _check_account(self, authorization: str) -> None:
        if self._accounts is None:
            return
        scheme, _, key = authorization.partition(" ")
        allowed = [f"{user}:{password}".encode() for user, password in self._accounts]
        # Compares all of them in constant time, so that the duration reveals nothing.
        found = [hmac.compare_digest(key.strip(" \t").encode("latin-1"), each) for each in allowed]
        if scheme.lower() != "bearer" or not any(found):
            raise NoSuchUser("no such user: the API key is USER:PASSWORD")

    def _checked(self, body: Any) -> tuple[Request, Wanted]:
        request, models = asked(self._service, body), self._service.models
        wanted = models.wanted(request.base, request.upsampler, request.adapters)
        check_fit(models.outline(wanted), request, self._service.limits.max_steps)
        return request, wanted


async def _body(http: Any) -> bytes:
    """The body, unless it is too large."""
    body = b""
    async for chunk in http.stream():
        body += chunk
        if len(body) > _LONGEST_BODY:
            raise TooLarge(f"a request may have {_LONGEST_BODY} bytes")
    return body


def asked(service: Service, body: Any) -> Request:
    """The request in a client's JSON, which uses OpenAI's names and those of the page's settings.

    Args:
        service: models, limits and defaults.
        body: `prompt`; `n` images, by default 1; `size` as "256x256", which selects the upsampler, or else `upsampler`
            does; `model`, a base model's name; `lora`, names of its adapters, by default those the page starts with;
            any setting of `service.fields`.

    Raises:
        GlideError: there is no such setting, model or size, or a value is out of bounds.
    """
    if not isinstance(body, dict):
        raise GlideError("the request must be a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    base = _model(service, body.get("model"))
    upsampler = _upsampler(service, base, body)
    adapters = body.get("lora", service.adapters if base.name == service.base else ())
    own = {"base": base.name, "upsampler": upsampler, "lora": adapters}
    chosen = Choice.of(own)
    fields = service.fields_of(chosen)
    for name in SCALES[len(chosen.adapters) :]:
        if name in body:
            raise GlideError(f"{name} needs one more LoRA: name it in lora")
    settings = fields.keys() - {"num_images", "candidates", "top_k", "strength"}
    known = {*settings, *_OWN, *_WITHOUT_EFFECT}
    if unknown := sorted(body.keys() - known):
        near = difflib.get_close_matches(unknown[0][:60], known, n=1)
        raise GlideError(f"unknown: {unknown[0][:60]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for name, only in (("response_format", "b64_json"), ("output_format", "png")):
        if body.get(name, only) != only:
            raise GlideError(f"{name} must be {only}")
    if body.get("stream"):
        raise GlideError("stream must be false: images come when they are finished")
    sent = {name: body[name] for name in (*settings, "negative_prompt", "prompt") if name in body}
    fields["num_images"] = fields["num_images"]._replace(name="n")
    return checked("draw", sent | own | {"num_images": body.get("n", 1)}, fields)


def _model(service: Service, name: Any) -> FoundModel:
    bases = {found.name: found for found in service.models.bases}
    wanted = service.base if name is None else str(name)
    if wanted not in bases:
        raise NoSuchModel(f"no model {wanted[:60]!r} here; there are: {', '.join(bases) or 'none'}")
    return bases[wanted]


def _upsampler(service: Service, base: FoundModel, body: Mapping[str, Any]) -> str:
    """The upsampler that takes a base model's images to the requested size; "" for none."""
    fitting = [found for found in service.models.upsamplers if found.enlarges == base.image_size]
    # The default upsampler is preferred over others of its size.
    fitting.sort(key=lambda found: found.name != service.upsampler)
    sizes = {f"{base.image_size}x{base.image_size}": ""}
    for found in fitting:
        sizes.setdefault(f"{found.image_size}x{found.image_size}", found.name)
    size = body.get("size", "auto")
    if size == "auto":
        given = body.get("upsampler")
        if given is not None:
            if not isinstance(given, str):
                raise GlideError("upsampler must be text")
            return given
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


# Status and code of the response for errors other than an invalid request.
_CODES: Mapping[type[Exception], tuple[int, str]] = {
    NoSuchUser: (401, "invalid_api_key"),
    NoSuchModel: (404, "model_not_found"),
    QueueFull: (429, "rate_limit_exceeded"),
    TooLarge: (413, "request_too_large"),
    Unloadable: (503, "model_unavailable"),
}


def _refusal(error: Exception) -> Any:
    from starlette.exceptions import HTTPException  # noqa: PLC0415
    from starlette.responses import JSONResponse  # noqa: PLC0415

    if isinstance(error, HTTPException):  # of what stands before this endpoint
        raise error
    status, code = _CODES.get(type(error), (400 if isinstance(error, GlideError) else 500, None))
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": said(error), "type": kind, "param": None, "code": code}}, status)
