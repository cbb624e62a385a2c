"""POST /v1/audio/speech, on the page's server."""

import io
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import soundfile
from longtake import weights
from longtake.demos.app import launch
from longtake.demos.bench import Bench
from longtake.demos.speech_api import FORMATS, allowed, line_of
from longtake.errors import UserError
from speech_prior import write


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    prior = write(tmp_path_factory.mktemp("speech") / "prior")
    patch = pytest.MonkeyPatch()
    stock = weights.shipped_priors
    mine = {"prosody-small": prior, "other": prior}
    patch.setattr(weights, "shipped_priors", lambda package: mine if package == "longtake.speech" else stock(package))
    bench = Bench()
    demo, address = launch(bench, "127.0.0.1", 0)
    yield address.rstrip("/") + "/v1/audio/speech"
    demo.close()
    bench.close()
    patch.undo()


def ask(url: str, body: object, code: int = 200) -> tuple[bytes, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=600) as answer:
            assert code == 200
            return answer.read(), answer.headers["content-type"]
    except urllib.error.HTTPError as error:
        assert error.code == code, error.read()
        return error.read(), ""


def test_every_format_is_spoken_and_seeded(url: str) -> None:
    made = {}
    for kind in FORMATS:
        sound, media = ask(url, {"model": "tts-1", "input": "Good evening.", "voice": "alloy", "response_format": kind})
        assert media == FORMATS[kind]
        made[kind] = sound
    wav, rate = soundfile.read(io.BytesIO(made["wav"]), dtype="int16")
    assert rate == 22_050 and np.array_equal(wav, np.frombuffer(made["pcm"], "<i2"))
    again, _ = ask(url, {"input": "Good evening.", "response_format": "wav", "model": "other", "voice": "a"})
    assert again == made["wav"]
    slow, _ = ask(url, {"input": "Good evening.", "response_format": "wav", "speed": 0.5})
    assert len(slow) > 1.4 * len(made["wav"])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{", "no JSON"), ([], "JSON object"), ({"input": ""}, "text to say"),
        ({"input": "a", "x": 1}, "x is not known"),
        ({"input": "a", "response_format": "aac"}, "response_format"), ({"input": "a", "speed": 9}, "at most 4"),
        ({"input": "a", "model": "/etc"}, "model is one of"), ({"input": "a", "voice": "nobody"}, "no speaker"),
        ({"input": "..."}, "no words"),
    ],
)  # fmt: skip
def test_mistakes_are_told_as_openai_does(url: str, body: object, what: str) -> None:
    told, _ = ask(url, body, 400)
    assert what in json.loads(told)["error"]["message"]


def test_a_login_is_the_key() -> None:
    assert (
        allowed({}, None)
        and not allowed({}, ("ann", "pw"))
        and not allowed({"authorization": "Bearer x"}, ("ann", "pw"))
    )
    assert allowed({"authorization": "Bearer ann:pw"}, ("ann", "pw"))
    with pytest.raises(UserError, match="input"):
        line_of({"input": 3})
