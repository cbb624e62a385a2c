"""The speech tab: a player whose words run along, with the wave, the pauses and the chapters; a sentence made anew."""

from __future__ import annotations

import base64
import html
import json
import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from longtake.demos.tab import Tab

if TYPE_CHECKING:
    from longtake.request import Request

COLUMNS = 900  # of the wave
MOST_KEPT = 8  # takes whose sentences can be made anew
_takes: OrderedDict[str, Any] = OrderedDict()  # name -> output, the newest last
_guard = threading.Lock()


def _views() -> list[Any]:
    import gradio as gr

    player = gr.HTML(_frame(_EMPTY), label="Speech", padding=False, elem_classes="viewer", js_on_load=None)
    with gr.Accordion("Sentences, and one of them made anew", open=False):
        table = gr.Dataframe(
            headers=["sentence", "text", "from, s", "to, s"], interactive=False, wrap=True, label="Sentences"
        )
        with gr.Row():
            number = gr.Number(1, label="Sentence", precision=0, minimum=1, min_width=120)
            anew = gr.Button("Make it anew", min_width=140)
        name = gr.Textbox("", label="Take", visible=False)
        file = gr.File(label="The take with it", interactive=False, elem_classes="files")
    with gr.Accordion("Pauses, pronunciation, prosody: what a text may hold", open=False):
        gr.Markdown(_HELP)
    anew.click(_again, [name, number], [player, table, name, file], api_name="speech_again")
    _picked.__annotations__["event"] = gr.SelectData  # by which gradio knows that it wants the event
    table.select(_picked, None, number, api_name="speech_sentence")
    return [player, table, name]


def _picked(event: Any) -> int:
    """The number of the sentence in the row that was pressed."""
    return int(event.index[0]) + 1


def _again(name: str, number: float) -> list[Any]:
    """The take with one sentence made anew: [player, table, its name, a file]. Raises what gradio shows."""
    import gradio as gr
    from longtake.errors import UserError, one_line

    with _guard:
        output = _takes.get(name)
    if output is None or output.again is None:
        raise gr.Error("generate a take first; the last eight can be changed")
    try:
        made = output.again(int(number), output.info.get("redone", 0) + 1)
    except UserError as error:
        raise gr.Error(one_line(error)) from None
    made.info["redone"] = output.info.get("redone", 0) + 1
    page = os.environ.get("GRADIO_TEMP_DIR")  # goes when the page ends
    if page is not None:
        os.makedirs(page, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="again-", dir=page))
    path = made.save(folder / "again.wav")
    return [*_shown(made), str(path)]


def show(output: Any, files: list[Path], request: Request) -> list[Any]:
    """The player, the sentences, and the name by which one of them can be made anew."""
    return _shown(output)


def _shown(output: Any) -> list[Any]:
    rows = [[number + 1, text, round(start, 2), round(end, 2)] for number, text, start, end in output.sentences()]
    name = f"{id(output):x}"
    with _guard:
        _takes[name] = output
        while len(_takes) > MOST_KEPT:
            _takes.popitem(last=False)
    return [_frame(player(output)), rows, name]


def player(output: Any) -> str:
    """A page that needs no other file: sound, wave, words to press."""
    with tempfile.TemporaryDirectory() as folder:
        sound = output.save(Path(folder) / "take.mp3").read_bytes()
    peaks = _peaks(output)
    words = [
        {
            "t": word.text,
            "a": round(word.start / output.rate, 3),
            "b": round(word.end / output.rate, 3),
            "s": word.sentence,
        }
        for word in output.words
        if not word.mark
    ]
    told = {"words": words, "peaks": peaks, "seconds": output.seconds}
    return (
        _PAGE.replace("SOUND", base64.b64encode(sound).decode("ascii"))
        .replace("TOLD", json.dumps(told, ensure_ascii=False).replace("</", "<\\/"))
        .replace("LABEL", html.escape(f"{output.seconds:.1f} s, {len(words)} words"))
    )


def _peaks(output: Any) -> list[float]:
    width = max(1, -(-output.length // COLUMNS))
    peaks = np.zeros(-(-output.length // width))
    at = 0
    for block in output.blocks():
        np.maximum.at(peaks, (at + np.arange(len(block))) // width, np.abs(block))
        at += len(block)
    return [round(float(peak), 3) for peak in peaks]


def _frame(text: str) -> str:
    """A page in a frame of its own."""
    return (
        '<iframe title="player: the words run along; press one to hear it" sandbox="allow-scripts" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )


_HELP = """
In plain text: `[pause:1s]` is silent for a second, `[[kˈoʊkəɹoʊ]]` is said as this IPA. In SSML:

```xml
<speak>
  <p>Wait <break time="700ms"/> a <mark name="here"/> moment.</p>
  <s>You say <phoneme ph="təmˈeɪtoʊ">tomato</phoneme>, the <sub alias="World Wide Web">WWW</sub> says
    <say-as interpret-as="characters">AB1</say-as>.</s>
  <prosody rate="slow" pitch="+2st">Slow and high</prosody>, <emphasis level="strong">strong</emphasis>.
  <voice name="af_bella">Somebody else.</voice>
</speak>
```
"""
_STYLE = """
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.6 system-ui, sans-serif; margin: 12px; }
audio { width: 100%; } canvas { width: 100%; height: 90px; display: block; margin: 6px 0; }
#words { max-height: 230px; overflow-y: auto; } #words span { cursor: pointer; border-radius: 4px; padding: 1px 2px; }
#words span.now { background: #3a6ea5; color: #fff; } #words span:hover { text-decoration: underline; }
.hint { opacity: .7; font-size: 13px; }
</style>
"""
_EMPTY = f"<!doctype html><html><head>{_STYLE}</head><body><p class=hint>The player comes here.</p></body></html>"
_PAGE = (
    """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>speech</title>"""
    + _STYLE
    + """</head><body>
<audio id="sound" controls src="data:audio/mpeg;base64,SOUND"></audio>
<canvas id="wave" height="90" aria-label="waveform"></canvas><p class="hint">LABEL</p><p id="words"></p>
<script>
const told = TOLD, sound = document.getElementById("sound"), wave = document.getElementById("wave");
const place = document.getElementById("words");
const spans = told.words.map((word, at) => {
  if (at && told.words[at - 1].s !== word.s) place.append(" ");
  const span = document.createElement("span");
  span.textContent = word.t; span.tabIndex = 0;
  const go = () => { sound.currentTime = word.a; sound.play(); };
  span.onclick = go; span.onkeydown = (event) => { if (event.key === "Enter") go(); };
  place.append(span, " "); return span;
});
let shown = -1;
function draw() {
  const now = sound.currentTime, pen = wave.getContext("2d"), width = wave.width = wave.clientWidth;
  const step = width / told.peaks.length;
  told.peaks.forEach((peak, at) => {
    pen.fillStyle = (at / told.peaks.length) * told.seconds < now ? "#3a6ea5" : "#9aa7b4";
    const high = Math.max(1, peak * 84); pen.fillRect(at * step, 45 - high / 2, Math.max(1, step * 0.8), high);
  });
  const at = told.words.findIndex((word) => now >= word.a && now < word.b);
  if (at !== shown) {
    if (spans[shown]) spans[shown].classList.remove("now");
    if (spans[at]) { spans[at].classList.add("now"); spans[at].scrollIntoView({ block: "nearest" }); }
    if (at >= 0) shown = at;
  }
  requestAnimationFrame(draw);
}
wave.onclick = (event) => { sound.currentTime = (event.offsetX / wave.clientWidth) * told.seconds; };
draw();
</script></body></html>
"""
)

TAB = Tab(
    views=_views, view_count=3, show=show, usual=(".wav", ".srt", ".json"),
    kinds=(".wav", ".flac", ".opus", ".mp3", ".srt", ".vtt", ".json"),
)  # fmt: skip
