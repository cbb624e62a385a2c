"""A modality's tab: timeline, settings, an estimate, Generate with live progress, Stop, files, and the same run as
JSON, Python and command line.

    Form(bench, domain_of("motion")).build()            # inside gr.Blocks

The settings are a line of ``longtake batch``: what the page makes, a batch makes, from the same text. Every control
comes from the domain's knobs, what is shown of a result from its `Tab`.
"""

from __future__ import annotations

import html
import inspect
import json
import keyword
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.bench import Bench, Finished, Progress
from longtake.demos.tab import picture, tab_of
from longtake.demos.timeline_editor import timeline_editor
from longtake.domain import Domain, Example, InputFile
from longtake.errors import UserError, one_line
from longtake.knob import Knob
from longtake.timeline import Timeline, has_times

if TYPE_CHECKING:
    from longtake.request import Request

DEVICE = "device"  # the queue of everything that computes on the device
MOST_SEED = 2**31 - 1
MOST_SETTINGS = 100_000  # characters of a settings text
MOST_PROMPTS = 20_000  # characters of a timeline
_PICK = """() => new Promise(done => {
  const field = Object.assign(document.createElement('input'), {type: 'file', accept: '.json,application/json'});
  field.onchange = () => field.files[0].size > 1e5 ? done('the file is too large') : field.files[0].text().then(done);
  field.click();
})"""


class Form:
    """One modality on the page: its controls, what they ask for, and the run."""

    def __init__(self, bench: Bench, domain: Domain) -> None:
        self.bench, self.domain, self.tab = bench, domain, tab_of(domain.NAME)
        told = bench.settings.get(domain.NAME, {})
        start = {knob.name: told.get(knob.name, knob.default) for knob in domain.KNOBS}
        usual = domain.usual(start, {})
        start |= {name: value for name, value in usual.items() if start[name] is None}
        self.knobs = tuple(replace(knob, default=start[knob.name]) for knob in domain.KNOBS if knob.page is not None)
        on_page = {knob.name for knob in self.knobs}
        self.fixed = {name: value for name, value in told.items() if name not in on_page}
        self.inputs = tuple(item for item in domain.INPUTS if item.page is not None)
        self.kinds = self.tab.kinds or tuple(suffix for suffix in domain.file_kinds() if suffix)
        self.usual = self.tab.usual or domain.USUAL
        self.has_length = domain.FPS is not None and domain.knob("frames") is not None
        self.fps = start.get("fps") or domain.FPS or 1.0
        self.examples = domain.EXAMPLES or (Example("An example", "one"),)

    @property
    def names(self) -> list[str]:
        """Inputs of a run, in order, as the API names them."""
        last = [_said(item) for item in self.inputs]
        asked = ["timeline"] if self.domain.PROMPT is not None else []
        length = ["seconds"] if self.has_length else []
        return [*asked, *length, "seed", *[knob.name for knob in self.knobs], "files", *last]

    # -------------------------------------------------------------------------------------------------- settings

    def line_of(self, values: Sequence[Any]) -> dict[str, Any]:
        """The job line that the controls' values stand for. Raises UserError for what no control can hold."""
        given = dict(zip(self.names, values, strict=True))
        seed = _number(given["seed"], "seed")
        if seed != int(seed) or not 0 <= seed <= MOST_SEED:
            raise UserError(f"the seed is a whole number from 0 to {MOST_SEED}; given {given['seed']}")
        kinds = given["files"] or []
        if not isinstance(kinds, list):
            raise UserError(f"files is a list of {', '.join(self.kinds)}")
        strange = [kind for kind in kinds if kind not in self.kinds]
        if strange:
            raise UserError(f"files are {', '.join(self.kinds)}; given {str(strange[0])[:60]!r}")
        parameters = {**self.fixed, **{knob.name: _value(knob, given[knob.name]) for knob in self.knobs}}
        if self.has_length:
            seconds = _number(given["seconds"], "length")
            if not 0 < seconds <= self.domain.MOST_SECONDS:
                raise UserError(
                    f"the length is between 0 and {self.domain.MOST_SECONDS:g} seconds here; given {seconds:g}"
                )
            parameters["frames"] = max(2, round(seconds * self.fps))
        line: dict[str, Any] = {"id": f"{self.domain.NAME}-{int(seed)}", "modality": self.domain.NAME}
        if self.domain.PROMPT is not None:
            text = given["timeline"]
            if text is not None and not isinstance(text, str):
                raise UserError("a timeline is text")
            text = (text or "").strip()
            if len(text) > MOST_PROMPTS:
                raise UserError(f"a timeline is at most {MOST_PROMPTS} characters here; given {len(text)}")
            # a prompt that ends in .json is a prompt here: a page's visitor names no files of this machine
            plain = not self.domain.TIMELINE or not text or has_times(text)
            line["timeline"] = text if plain else f"0s: {text}"
        line |= {"seed": int(seed), "parameters": {**parameters, "outputs": kinds or list(self.usual)}}
        uploads = {item: given[_said(item)] for item in self.inputs if given[_said(item)]}
        files = {item.name: self.bench.given(upload, item.kinds) for item, upload in uploads.items()}
        if files:
            line["inputs"] = {name: str(path) for name, path in files.items()}
            if self.domain.PROMPT_INPUT in files:
                if self.has_length:  # of what is to be made, which the file is already
                    line["parameters"] = {
                        k: v for k, v in line["parameters"].items() if k not in ("frames", *self.fixed)
                    }
                if not line.get("timeline"):
                    line.pop("timeline")
        return line

    def values_of(self, line: Any) -> list[Any]:
        """The controls' values of a job line; what it leaves out is as usual. Raises UserError."""
        if not isinstance(line, dict) or line.get("modality", self.domain.NAME) != self.domain.NAME:
            raise UserError(f"these are no settings of a {self.domain.NAME} job")
        from longtake.request import KEYS

        unknown = sorted(str(key) for key in set(line) - {"id", *KEYS})
        if unknown or ("prompt" in line and "timeline" in line):
            raise UserError(f"settings have {', '.join(KEYS)}, and a prompt or a timeline, not both")
        inputs = line.get("inputs") or {}
        shipped = {str(path) for example in self.examples for path in example.inputs.values()}
        if not isinstance(inputs, dict) or any(str(path) not in shipped for path in inputs.values()):
            raise UserError("settings bring no input files to the page: upload them there, or run longtake batch")
        text = line.get("timeline", line.get("prompt", ""))
        parameters = line.get("parameters", {})
        if not isinstance(text, str) or not isinstance(parameters, dict):
            raise UserError("settings have a timeline as text, and parameters")
        usual = {knob.name: knob.default for knob in self.knobs} | {"outputs": list(self.usual)}
        strange = sorted(str(name) for name in set(parameters) - set(usual) - set(self.fixed) - {"frames"})
        if strange:
            raise UserError(f"the page has no control for {strange[0][:60]!r}")
        merged = {**usual, **parameters}
        if text.lstrip().startswith("{") and self.domain.TIMELINE:
            whole = Timeline.parse(text, fps=self.fps)
            text = " | ".join(f"{start / self.fps:g}s: {prompt}" for start, prompt in whole.starts)
            if Timeline.parse(text, fps=self.fps) != whole:
                raise UserError("the page cannot show this timeline: a cross-fade of its own, or a bar in a prompt")
        frames = parameters.get("frames")
        seconds = _number(frames, "number of frames") / self.fps if frames else self.examples[0].seconds or 4.0
        values: list[Any] = [text] if self.domain.PROMPT is not None else []
        values += [seconds] if self.has_length else []
        values += [line.get("seed", 0), *[merged[knob.name] for knob in self.knobs], merged["outputs"]]
        values += [self.bench.sample(inputs.get(item.name)) for item in self.inputs]
        self.request_of(self.line_of(values))
        return values

    def request_of(self, line: dict[str, Any]) -> Request:
        """The request of a line, with every side file of the domain. Raises UserError for what cannot be made."""
        from longtake.request import Request

        request = Request.read({key: value for key, value in line.items() if key != "id"})
        request.domain.forecast(request)
        return replace(request, sides=tuple(side.name for side in self.domain.SIDES if side.name != "report"))

    def estimate(self, values: Sequence[Any]) -> str:
        """Time and memory of a run, or what is wrong with the settings, in words."""
        try:
            request = self.request_of(self.line_of(values))
        except UserError as error:
            return f"⚠ {one_line(error)}"
        cost = request.domain.forecast(request)
        pace, measured = self.bench.pace(self.domain.NAME)
        source = "going by the last run" if measured else "going by a laptop's two cores"
        seconds = max(1, round(pace * cost.seconds))
        return f"{cost.amount}: about {seconds} s, up to {cost.memory_gb:g} GB of memory ({source})"

    # --------------------------------------------------------------------------------------------------- the run

    def run(self, session: str, values: Sequence[Any], skip: Any) -> Iterator[list[Any]]:
        """What the components show, again and again until the end: [progress, *views, files, settings, python,
        command]. Raises UserError."""
        from longtake.make import Targets

        self.bench.begin(session)
        line = self.line_of(values)
        request = self.request_of(line)
        # as the visitor knows the files: without the folders of this machine
        names = {name: path.name for name, path in request.inputs.items()}
        told = replace(request, inputs={name: Path(file) for name, file in names.items()})
        shown_line = line | ({"inputs": names} if names else {})
        later = [skip] * (self.tab.view_count + 4)
        yield [_bar("Loading the model…"), *later]
        maker = self.bench.maker
        pipe = maker.pipe(request)
        folder = self.bench.new_folder()
        shown = ""
        yield [_bar("Starting…"), *later]

        def work(on_step: Any) -> Any:
            return maker.make(request, Targets.of_stem(request, folder / line["id"], run=False), on_step=on_step)

        def glimpse(clean: Any, path: Path) -> None:
            assert self.tab.glimpse is not None
            self.tab.glimpse(pipe, clean, path)

        cost = request.domain.forecast(request).seconds
        notes = self.bench.run(
            session, self.domain.NAME, cost, work, glimpse if self.tab.glimpse is not None else None, folder
        )
        try:
            for note in notes:
                if isinstance(note, Progress):
                    if note.glimpse is not None:
                        shown = picture(note.glimpse, f"preview after step {note.step}")
                    step = f"Step {note.step} of {note.steps}"
                    yield [_bar(step, note.step / note.steps, note.left) + shown, *later]
                elif isinstance(note, Finished):
                    made = note.result
                    self.bench.copy(made.files)
                    yield [
                        _told(request, made, note.seconds),
                        *self.tab.show(made.output, made.files, request),
                        [str(path) for path in made.files],
                        json.dumps(shown_line, ensure_ascii=False, indent=1),
                        told.as_python(line["id"]),
                        told.as_command(line["id"]),
                    ]
        finally:
            notes.close()  # type: ignore[attr-defined]
            shutil.rmtree(folder, ignore_errors=True)  # the page has its copies

    # -------------------------------------------------------------------------------------------------- the page

    def build(self) -> list[Any]:
        """Build the tab inside gr.Blocks; returns its inputs. Events are named after the modality: /motion,
        /motion_stop, /motion_estimate, /motion_dice, /motion_load, /motion_example_1, ..."""
        import gradio as gr

        first = self.examples[0]
        gr.Markdown(self.domain.SUMMARY or self.domain.ABOUT, elem_classes="about")
        with gr.Row(elem_classes="examples"):
            buttons = [gr.Button(f"▶ {example.title}", size="md", min_width=60) for example in self.examples]
        with gr.Row(elem_classes="studio"):
            with gr.Column(scale=5, min_width=320):
                inputs = self._controls(first)
                told = gr.Markdown(self.estimate(self._first_values(first)), elem_classes="estimate")
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", min_width=140)
                    stop = gr.Button("Stop", min_width=140)
            with gr.Column(scale=6, min_width=320):
                progress = gr.HTML(
                    self._welcome(), label="Progress", padding=False, elem_classes="progress",
                    elem_id=f"{self.domain.NAME}-progress", js_on_load=None,
                )  # fmt: skip
                views = self.tab.views()
                download = gr.File(label="Files", file_count="multiple", interactive=False, elem_classes="files")
        with gr.Accordion("The same run as settings, Python and command line", open=False):
            with gr.Row():
                with gr.Column(min_width=320):
                    settings = gr.Code(
                        label="Settings: a line of longtake batch", language="json", interactive=False, wrap_lines=True
                    )
                    python = gr.Code(label="Python", language="python", interactive=False, wrap_lines=True)
                    command = gr.Code(label="Command line", language="shell", interactive=False, wrap_lines=True)
                with gr.Column(min_width=320):
                    text = gr.Textbox(label="Settings to load", lines=6, max_lines=12, placeholder='{"modality": ...}')
                    with gr.Row():
                        load = gr.Button("Load these settings", size="sm")
                        pick = gr.Button("Read a .json file", size="sm")
        pick.click(None, None, text, js=_PICK)  # in the browser: the file is not sent as one
        self._wire(
            inputs, buttons, go, stop, told, load, text,
            [progress, *views, download, settings, python, command],
        )  # fmt: skip
        return list(inputs.values())

    def _welcome(self) -> str:
        """What stands above the result before anything was made."""
        made = f"Below: <code>{html.escape(self.tab.sample)}</code>" if self.tab.sample else ""
        return (
            '<p class="hint">Press an example, or write your own and press Generate. Stop keeps what is done. '
            f"{made}</p>"
        )

    def first_line(self) -> dict[str, Any]:
        """The job line that the page opens with."""
        return self.line_of(self._first_values(self.examples[0]))

    def _first_values(self, example: Example) -> list[Any]:
        return self.values_of(self._line(example))

    def _line(self, example: Example) -> dict[str, Any]:
        line: dict[str, Any] = {"seed": example.seed, "parameters": dict(example.parameters)}
        if self.domain.PROMPT is not None:
            line["timeline"] = example.prompt
        if example.inputs:
            line["inputs"] = {name: str(path) for name, path in example.inputs.items()}
        if self.has_length and example.seconds is not None:
            line["parameters"]["frames"] = round(example.seconds * self.fps)
        return line

    def _controls(self, example: Example) -> dict[str, Any]:
        """Components by name, in the order of `names`, with an example's values."""
        import gradio as gr

        values = dict(zip(self.names, self._first_values(example), strict=True))
        made: dict[str, Any] = dict.fromkeys(self.names)  # in this order, wherever they stand on the page
        for item in self.inputs:
            if item.positional:
                made[_said(item)] = _upload(item, values[_said(item)])
        if self.domain.PROMPT is not None:
            if self.domain.TIMELINE:
                made["timeline"] = timeline_editor(values["timeline"], fps=self.fps, gap=self.tab.gap)
            else:
                made["timeline"] = gr.Textbox(
                    values["timeline"], label=self.tab.text, lines=self.tab.lines, max_length=MOST_PROMPTS
                )
        with gr.Row(elem_classes="lengths"):
            if self.has_length:
                made["seconds"] = gr.Number(
                    values["seconds"], label="Length in seconds", minimum=0, maximum=self.domain.MOST_SECONDS,
                    step=0.5, min_width=120,
                )  # fmt: skip
            made["seed"] = gr.Number(
                values["seed"], label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120
            )
            dice = gr.Button("New seed ↻", min_width=90)
        with gr.Accordion("More settings", open=False):
            for item in self.inputs:
                if not item.positional:
                    made[_said(item)] = _upload(item, values[_said(item)])
            for knob in self.knobs:
                made[knob.name] = _control(knob, values[knob.name])
            made["files"] = gr.CheckboxGroup(list(self.kinds), value=values["files"], label="Files to write")
        _event(
            dice.click, lambda: secrets.randbelow(MOST_SEED), [], outputs=made["seed"],
            api_name=f"{self.domain.NAME}_dice",
        )  # fmt: skip
        return made

    def _wire(
        self,
        controls: dict[str, Any],
        buttons: Sequence[Any],
        go: Any,
        stop: Any,
        told: Any,
        load: Any,
        text: Any,
        outputs: list[Any],
    ) -> None:
        """What happens when something is pressed."""
        import gradio as gr

        name, inputs, progress = self.domain.NAME, list(controls.values()), outputs[0]

        def generate(*values: Any) -> Iterator[list[Any]]:
            with _told_by_gradio():
                yield from self.run(_session(values[-1]), values[:-1], gr.skip())

        def expect(request: Any) -> None:
            self.bench.expect(_session(request))

        def halt(request: Any) -> None:
            gr.Info(self.bench.stop(_session(request)))

        def read(settings: str) -> list[Any]:
            with _told_by_gradio():
                return self.values_of(_json(settings))

        files = [_said(item) for item in self.inputs]
        _named(generate, [*self.names, "request"], gr.Request, files)
        _named(expect, ["request"], gr.Request)
        _named(halt, ["request"], gr.Request)
        work: dict[str, Any] = {
            "inputs": inputs, "outputs": outputs, "concurrency_id": DEVICE, "concurrency_limit": 1,
            "show_progress": "minimal", "show_progress_on": progress,
        }  # fmt: skip
        place = f"document.getElementById('{progress.elem_id}')"
        seen = f"() => {{ {place}?.scrollIntoView({{block: 'nearest'}}); return []; }}"
        go.click(expect, queue=False, api_name=f"{name}_join", show_progress="hidden", js=seen).then(
            generate, api_name=name, **work
        )
        for number, (button, example) in enumerate(zip(buttons, self.examples, strict=True), 1):
            filled = _event(
                button.click, lambda example=example: self.values_of(self._line(example)), [], outputs=inputs,
                api_name=f"{name}_example_{number}", js=seen,
            )  # fmt: skip
            joined = filled.then(expect, queue=False, api_visibility="private", show_progress="hidden")
            joined.then(generate, api_visibility="private", **work)
        stop.click(halt, queue=False, api_name=f"{name}_stop", show_progress="hidden")
        _event(load.click, read, ["settings"], inputs=text, outputs=inputs, api_name=f"{name}_load")
        changes = [part.change for part in (*inputs, progress)]
        if self.domain.TIMELINE and "timeline" in controls:
            changes.append(controls["timeline"].input)
        ask = lambda *values: self.estimate(values)  # noqa: E731 - a function of its own for each tab
        _named(ask, self.names, files=files)
        gr.on(
            changes, ask, inputs=inputs, outputs=told, queue=False, api_name=f"{name}_estimate",
            show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip


def _event(trigger: Any, function: Callable[..., Any], names: Sequence[str], **settings: Any) -> Any:
    """An event that is answered at once, not in the queue."""
    _named(function, names)
    return trigger(function, queue=False, show_progress="hidden", **settings)


def _said(item: InputFile) -> str:
    """The name of an input in the page's API, where it is a parameter of Python."""
    return item.name + "_" if keyword.iskeyword(item.name) else item.name


def _upload(item: InputFile, value: Any) -> Any:
    """The gradio component that takes an input in."""
    import gradio as gr

    upload = gr.File(
        value, label=item.page, file_count="multiple" if item.many else "single", type="filepath", height=120,
        elem_classes="upload",
    )  # fmt: skip
    stock = upload.async_move_resource_to_block_cache

    async def take(path: Any) -> Any:
        if "://" in str(path):  # gradio would fetch it
            raise gr.Error("the page fetches no files from elsewhere: upload it", print_exception=False)
        return await stock(path)

    setattr(upload, "async_move_resource_to_block_cache", take)  # noqa: B010 - a method of this one alone
    return upload


def _control(knob: Knob, value: Any) -> Any:
    """The gradio component of a knob."""
    import gradio as gr

    if isinstance(knob.kind, tuple):
        return gr.Radio(list(knob.kind), value=value, label=knob.page)
    if knob.kind is bool:
        return gr.Checkbox(value, label=knob.page)
    if knob.kind is str:
        return gr.Textbox(value or "", label=knob.page, max_length=300)
    low = knob.least if knob.least is not None else 0
    high = knob.page_most or knob.most
    if high is None:
        return gr.Number(value, label=knob.page, precision=0 if knob.kind is int else None)
    return gr.Slider(low, high, value=value, step=1 if knob.kind is int else 0.1, label=knob.page)


def _value(knob: Knob, value: Any) -> Any:
    """What a control holds, as a job says it."""
    if knob.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if knob.default is None and value == "":
        value = None
    return knob.read(value)


def _told(request: Request, made: Any, seconds: float) -> str:
    """How it ended, as HTML."""
    whole = "" if made.complete else f", stopped after step {made.output.info.get('steps')}: unfinished"
    amount = request.domain.forecast(request).amount
    lines = [f'<p class="done" role="status">{amount} in {seconds:.1f} s, seed {request.seed}{whole}</p>']
    for note in (*made.warnings, *made.output.info.get("told", [])):
        lines.append(f'<p class="hint">{html.escape(str(note))}</p>')
    return "".join(lines)


def _number(value: Any, what: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < 1e12:
        raise UserError(f"the {what} is a number; given {ascii(value)[:60]}")
    return number


def _bar(text: str, share: float | None = None, left: float | None = None) -> str:
    value = "" if share is None else f' value="{share:.4f}"'
    more = "" if left is None or left < 1 else f", about {round(left)} s left"
    return (
        f'<div class="bar" role="status"><span>{html.escape(text + more)}</span>'
        f'<progress max="1"{value} aria-label="progress of the run"></progress></div>'
    )


@contextmanager
def _told_by_gradio() -> Iterator[None]:
    """A mistake of the visitor's becomes one line on the page; anything else a line here and its trace in the log."""
    import gradio as gr

    try:
        yield
    except UserError as error:
        raise gr.Error(one_line(error), print_exception=False) from error
    except (GeneratorExit, gr.Error):
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("a run of the demo failed")
        raise gr.Error(f"this run failed: {type(error).__name__}: {one_line(error)}", print_exception=False) from error


def _json(text: Any) -> Any:
    if not isinstance(text, str) or len(text) > MOST_SETTINGS:
        raise UserError(f"settings are a text of {MOST_SETTINGS} characters at most")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the settings are not JSON: {one_line(error)}") from error


def _session(request: Any) -> str:
    return str(getattr(request, "session_hash", None) or "local")


def _named(function: Any, names: Sequence[str], request: Any = None, files: Sequence[str] = ()) -> None:
    """Give a function of ``*values`` the parameters' names, which the API shows; ``files`` may be missing."""
    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    notes = {"request": request} if request is not None else {}
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                kind,
                annotation=notes.get(name, none),
                default=None if files and name in (*files, "request") else none,
            )
            for name in names
        ]
    )
    function.__annotations__ = dict(notes)
