"""POST /v1/audio/speech on the page's server: the request of OpenAI's text-to-speech clients, on this machine's priors.

    curl http://127.0.0.1:7860/v1/audio/speech -d '{"input": "Good evening.", "response_format": "wav"}' -o hello.wav

model: a prior's name ("tts-1" and the like: the one that ships); input; voice: a speaker of the prior ("default" and
OpenAI's own names: its first); response_format: mp3, opus, flac, wav or pcm (16 bits, at the prior's rate); speed. With
a login the key is USER:PASSWORD. One request at a time, in turn with the page's runs. A field that is not known here is
refused.
"""

from __future__ import annotations

import hmac
import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, one_line

if TYPE_CHECKING:
    from longtake.demos.bench import Bench

PATH = "/v1/audio/speech"
MOST_BYTES = 1_000_000
FORMATS = {"mp3": "audio/mpeg", "opus": "audio/ogg", "flac": "audio/flac", "wav": "audio/wav", "pcm": "audio/pcm"}
FIELDS = ("model", "input", "voice", "response_format", "speed", "seed")
_THEIRS = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse", "default")
_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


def line_of(body: Any) -> tuple[dict[str, Any], str]:
    """(job line, format) of a request's JSON. Raises UserError."""
    if not isinstance(body, dict):
        raise UserError("the request is a JSON object")
    strange = sorted(str(key) for key in set(body) - set(FIELDS))
    if strange:
        raise UserError(f"{strange[0][:40]} is not known here; known are {', '.join(FIELDS)}")
    text, kind = body.get("input"), body.get("response_format", "mp3")
    if not isinstance(text, str) or not text.strip():
        raise UserError("input is the text to say")
    if kind not in FORMATS:
        raise UserError(f"response_format is one of {', '.join(FORMATS)}; given {str(kind)[:40]!r}")
    parameters: dict[str, Any] = {"outputs": [".wav" if kind == "pcm" else f".{kind}"], "preview": False}
    if body.get("model", "tts-1") not in _MODELS:
        parameters["prior"] = _shipped(body["model"])
    if body.get("voice", "default") not in _THEIRS:
        parameters["voice"] = body["voice"]
    if "speed" in body:
        parameters["rate"] = body["speed"]
    return {"modality": "speech", "prompt": text, "seed": body.get("seed", 0), "parameters": parameters}, kind


def _shipped(name: Any) -> str:
    """A prior by name, and no folder of this machine. Raises UserError."""
    from longtake.domain import domain_of
    from longtake.weights import shipped_priors

    known = shipped_priors(domain_of("speech").package)
    if name not in known:
        raise UserError(f"model is one of {', '.join([*known, *_MODELS])}; given {str(name)[:40]!r}")
    return str(name)


def speak(bench: Bench, body: Any) -> tuple[bytes, str]:
    """(the sound, its media type). Raises UserError."""
    from longtake.demos.bench import Finished
    from longtake.make import Targets
    from longtake.request import Request

    line, kind = line_of(body)
    request = Request.read(line)
    cost = request.domain.forecast(request).seconds
    folder = bench.new_folder()

    def work(on_step: Any) -> Any:
        return bench.maker.make(request, Targets.of_stem(request, folder / "speech", run=False), on_step=on_step)

    try:
        made = None
        for note in bench.run("api", "speech", cost, work, None, folder):
            if isinstance(note, Finished):
                made = note.result
        assert made is not None
        if kind == "pcm":
            import numpy as np

            samples = np.clip(made.output.samples, -1, 1)
            return np.rint(samples * 32767).astype("<i2").tobytes(), FORMATS[kind]
        return made.files[0].read_bytes(), FORMATS[kind]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def allowed(headers: Mapping[str, str], auth: tuple[str, str] | None) -> bool:
    """Whether the key of a request is right; any will do where the page has no login."""
    if auth is None:
        return True
    given = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return hmac.compare_digest(given.encode(errors="replace"), f"{auth[0]}:{auth[1]}".encode())


def add(app: Any, bench: Bench, auth: tuple[str, str] | None) -> None:
    """Add the route to a running app."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request as Asked
    from starlette.responses import JSONResponse, Response

    def refused(code: int, words: str) -> Any:
        return JSONResponse({"error": {"message": words, "type": "invalid_request_error"}}, code)

    async def answer(asked: Asked) -> Any:
        if not allowed(asked.headers, auth):
            return refused(401, "the key is USER:PASSWORD of the page")
        data = bytearray()
        async for part in asked.stream():
            data += part
            if len(data) > MOST_BYTES:
                return refused(413, f"a request is at most {MOST_BYTES} bytes")
        try:
            sound, kind = await run_in_threadpool(speak, bench, _json(bytes(data)))
        except UserError as error:
            return refused(400, one_line(error))
        return Response(sound, media_type=kind)

    app.router.add_route(PATH, answer, methods=["POST"])


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise UserError("the request is no JSON") from None
