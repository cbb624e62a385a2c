"""A modality's tab: timeline, settings, an estimate, Generate with live progress, Stop, files, and the same run as
JSON, Python and command line.

    studio(bench, MODALITY)             # inside gr.Blocks; MODALITY as in motion_tab.py

The settings are a job line of ``longtake batch``: what the page makes, a batch makes, from the same text.
"""

from __future__ import annotations

import base64
import html
import inspect
import json
import logging
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.bench import Bench, Finished, Progress
from longtake.demos.timeline_editor import timeline_editor
from longtake.errors import UserError, one_line
from longtake.timeline import Timeline, has_times

if TYPE_CHECKING:
    from longtake.distributed import Ranks

DEVICE = "device"  # the queue of everything that computes on the device
MOST_SEED = 2**31 - 1
MOST_STEPS = 200
MOST_SETTINGS = 100_000  # characters of a settings text


@dataclass(frozen=True)
class Example:
    """A button that fills the form and runs it."""

    title: str
    timeline: str
    seconds: float
    seed: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A control beyond the usual ones: ``name`` is the job's parameter, ``build`` makes the gradio component."""

    name: str
    build: Callable[[], Any]


@dataclass(frozen=True)
class Modality:
    """What a tab needs to know. jobs: name of the domain's jobs module. views: builds the components of the result, so
    many; show(output, files, timeline) gives their values. glimpse(pipe, clean, path): a preview of the clean estimate.
    kinds: files that can be had, ``usual`` those ticked at the start. python, command: the same run, of its job line.
    most_seconds: the longest run that the page takes; gap: seconds between a prompt and one added after it."""

    name: str
    title: str
    about: str
    jobs: str
    examples: Sequence[Example]
    seconds: float
    most_seconds: float
    gap: float
    kinds: Sequence[str]
    usual: Sequence[str]
    views: Callable[[], list[Any]]
    view_count: int
    show: Callable[[Any, list[Path], Timeline], list[Any]]
    glimpse: Callable[[Any, Any, Path], None]
    python: Callable[[dict[str, Any]], str]
    command: Callable[[dict[str, Any]], str]
    settings: Sequence[Setting] = field(default=())

    @property
    def domain(self) -> Any:
        """The module longtake.<modality>.jobs."""
        return import_module(self.jobs)

    @property
    def names(self) -> list[str]:
        """Inputs of a run, in order, as the API names them."""
        return ["timeline", "seconds", "seed", "steps", "guidance", *[s.name for s in self.settings], "files"]


# ---------------------------------------------------------------------------------------------------- settings


def job_of(modality: Modality, values: Sequence[Any]) -> dict[str, Any]:
    """The job line that the controls' values stand for. Raises UserError for what no control can hold."""
    given = dict(zip(modality.names, values, strict=True))
    text = str(given["timeline"] or "").strip()
    seconds, seed = _number(given["seconds"], "length"), _number(given["seed"], "seed")
    if not 0 < seconds <= modality.most_seconds:
        raise UserError(f"the length is between 0 and {modality.most_seconds:g} seconds here; given {seconds:g}")
    if seed != int(seed) or not 0 <= seed <= MOST_SEED:
        raise UserError(f"the seed is a whole number from 0 to {MOST_SEED}; given {given['seed']}")
    if not 1 <= _number(given["steps"], "steps") <= MOST_STEPS:
        raise UserError(f"steps are 1 to {MOST_STEPS}; given {given['steps']}")
    kinds = list(given["files"] or ())
    strange = [kind for kind in kinds if kind not in modality.kinds]
    if strange:
        raise UserError(f"files are {', '.join(modality.kinds)}; given {strange[0]!r}")
    parameters = {
        "frames": max(2, round(seconds * modality.domain.FPS)),
        "steps": int(given["steps"]),
        "guidance": _number(given["guidance"], "guidance"),
        **{s.name: given[s.name] for s in modality.settings},
        "outputs": kinds or list(modality.usual),
    }
    return {
        "id": f"{modality.name}-{int(seed)}",
        "modality": modality.name,
        # a prompt that ends in .json is a prompt here: a page's visitor names no files of this machine
        "timeline": text if not text or has_times(text) else f"0s: {text}",
        "seed": int(seed),
        "parameters": parameters,
    }


def values_of(modality: Modality, job: Any) -> list[Any]:
    """The controls' values of a job line; what it leaves out is as usual. Raises UserError."""
    if not isinstance(job, dict) or job.get("modality", modality.name) != modality.name:
        raise UserError(f"these are no settings of a {modality.name} job")
    text = job.get("timeline", job.get("prompt", ""))
    parameters = job.get("parameters", {})
    if not isinstance(text, str) or not isinstance(parameters, dict):
        raise UserError("settings have a timeline as text, and parameters")
    known = modality.domain.DEFAULTS
    usual = {name: known[name] for name in ("steps", "guidance", *[s.name for s in modality.settings])}
    usual["outputs"] = list(modality.usual)
    strange = sorted(set(parameters) - set(usual) - {"frames"})
    if strange:
        raise UserError(f"the page has no control for {strange[0]!r}")
    merged = {**usual, **parameters}
    if text.lstrip().startswith("{"):
        starts = Timeline.parse(text, fps=modality.domain.FPS).starts
        text = " | ".join(f"{start / modality.domain.FPS:g}s: {prompt}" for start, prompt in starts)
    seconds = parameters["frames"] / modality.domain.FPS if parameters.get("frames") else modality.seconds
    values = [text, seconds, job.get("seed", 0), merged["steps"], merged["guidance"]]
    values += [merged[s.name] for s in modality.settings]
    values.append(merged["outputs"])
    checked(modality, job_of(modality, values))
    return values


def python_of(
    job: dict[str, Any], pipeline: str, *, prompt: str, call: str = "pipe", also: str = "", after: Sequence[str] = (),
    **settings: Any,
) -> str:
    """A program that makes a job. pipeline: its class; prompt: as Python; also: another name to import; call: what is
    called; settings: further arguments; after: lines before the files are saved."""  # fmt: skip
    given = job["parameters"]
    settings = {"frames": given["frames"], "seed": job["seed"], "num_inference_steps": given["steps"],
                "guidance_scale": given["guidance"], **settings}  # fmt: skip
    prior = import_module(f"longtake.{job['modality']}.jobs").DEFAULTS["prior"]
    return "\n".join(
        [
            f"from longtake import {', '.join(name for name in (pipeline, also) if name)}",
            "",
            f'pipe = {pipeline}.from_prior("{prior}")',
            f"out = {call}(",
            f"    {prompt},",
            *[f"    {name}={value!r}," for name, value in settings.items()],
            ")",
            *after,
            *[f'out.save("{job["id"]}{kind}")' for kind in given["outputs"]],
        ]
    )


def command_of(job: dict[str, Any], length: Sequence[str], more: Sequence[str], kinds: Sequence[str]) -> str:
    """The line to type in a terminal. length: its words; more: further options; kinds: suffixes of ``--out``."""
    given = job["parameters"]
    words = ["longtake", job["modality"], job["timeline"], *length, "--seed", str(job["seed"])]
    words += ["--steps", str(given["steps"]), "--guidance", f"{given['guidance']:g}", *more]
    return shlex.join([*words, *[word for kind in kinds for word in ("--out", f"{job['id']}{kind}")]])


def checked(modality: Modality, job: dict[str, Any]) -> Any:
    """The job as ``longtake batch`` reads it. Raises UserError."""
    from longtake.batch import parse_job

    return parse_job(1, job)


def estimate(bench: Bench, modality: Modality, values: Sequence[Any]) -> str:
    """Time and memory of a run, or what is wrong with the settings, in words."""
    try:
        job = checked(modality, job_of(modality, values))
    except UserError as error:
        return f"⚠ {one_line(error)}"
    return _estimate(bench, modality, job.frames, job.parameters["steps"])


def _estimate(bench: Bench, modality: Modality, frames: int, steps: int) -> str:
    pace, measured = bench.pace(modality.name, modality.domain.SECONDS)
    seconds = max(1, round(pace * frames * steps))
    source = "going by the last run" if measured else "going by a laptop's two cores"
    return f"{frames} frames: about {seconds} s, up to {modality.domain.MEMORY_GB:g} GB of memory ({source})"


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"the {what} is a number; given {value!r}") from None
    if not abs(number) < 1e9:
        raise UserError(f"the {what} is too large: {value!r}")
    return number


# --------------------------------------------------------------------------------------------------------- the run


def run(bench: Bench, modality: Modality, session: str, values: Sequence[Any], skip: Any) -> Iterator[list[Any]]:
    """What the components show, again and again until the end: [progress, *views, files, settings, python, command].
    Raises UserError."""
    from longtake.distributed import Ranks

    bench.begin(session)
    job = job_of(modality, values)
    settled = checked(modality, job)
    later = [skip] * (modality.view_count + 4)
    yield [_bar("Loading the model…"), *later]
    ranks = Ranks.single()
    prior = str(settled.parameters["prior"])
    pipe = load(bench, modality, prior, ranks)
    pipe.set_progress_bar_config(disable=True)
    folder = bench.new_folder()
    picture = ""
    yield [_bar("Starting…"), *later]

    def work(callback: Callable[..., dict[str, Any]]) -> tuple[Any, list[Path]]:
        parameters = {**settled.parameters, "preview": True}
        output = modality.domain.generate(pipe, settled.timeline, settled.seed, parameters, ranks, callback)
        return output, modality.domain.write(output, parameters, folder / settled.id)

    def glimpse(clean: Any, path: Path) -> None:
        modality.glimpse(pipe, clean, path)

    notes = bench.run(
        session, modality.name, pipe, settled.parameters["steps"], settled.frames, work, glimpse, folder
    )
    try:
        for note in notes:
            if isinstance(note, Progress):
                if note.glimpse is not None:
                    picture = _inline(note.glimpse, f"preview after step {note.step}")
                yield [_bar(f"Step {note.step} of {note.steps}", note.step / note.steps, note.left) + picture, *later]
            elif isinstance(note, Finished):
                output, files = note.result
                bench.copy(files)
                info = output.info
                whole = "" if info["completed"] else f", stopped after step {info['steps']}"
                told = f"{info['frames']} frames in {note.seconds:.1f} s, seed {settled.seed}{whole}"
                yield [
                    f'<p class="done" role="status">{html.escape(told)}</p>',
                    *modality.show(output, files, settled.timeline),
                    [str(path) for path in files],
                    json.dumps(job, ensure_ascii=False, indent=1),
                    modality.python(job),
                    modality.command(job),
                ]
    finally:
        notes.close()  # type: ignore[attr-defined]
        shutil.rmtree(folder, ignore_errors=True)  # the page has its copies


def load(bench: Bench, modality: Modality, prior: str, ranks: Ranks) -> Any:
    """The pipeline of a prior, loaded once."""
    from longtake.runs import quiet_libraries

    def read() -> Any:
        quiet_libraries()
        return modality.domain.load(prior, ranks)

    return bench.pipeline(modality.name, prior, read)


def _bar(text: str, share: float | None = None, left: float | None = None) -> str:
    value = "" if share is None else f' value="{share:.4f}"'
    more = "" if left is None or left < 1 else f", about {round(left)} s left"
    return (
        f'<div class="bar" role="status"><span>{html.escape(text + more)}</span>'
        f'<progress max="1"{value} aria-label="progress of the run"></progress></div>'
    )


def _inline(path: Path, words: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img class="glimpse" src="data:image/png;base64,{data}" alt="{html.escape(words)}">'


# -------------------------------------------------------------------------------------------------------- the form


def studio(bench: Bench, modality: Modality) -> list[Any]:
    """Build the tab inside gr.Blocks; returns its inputs. Events are named after the modality: /motion, /motion_stop,
    /motion_estimate, /motion_dice, /motion_load, /motion_example_1, ..."""
    import gradio as gr

    known, first = modality.domain.DEFAULTS, modality.examples[0]
    gr.Markdown(modality.about, elem_classes="about")
    with gr.Row(elem_classes="examples"):
        buttons = [gr.Button(f"▶ {example.title}", size="sm", min_width=80) for example in modality.examples]
    with gr.Row(elem_classes="studio"):
        with gr.Column(scale=5, min_width=320):
            timeline = timeline_editor(first.timeline, fps=modality.domain.FPS, gap=modality.gap)
            with gr.Row():
                seconds = gr.Number(
                    first.seconds, label="Length in seconds", minimum=0, maximum=modality.most_seconds, step=0.5,
                    min_width=120,
                )  # fmt: skip
                seed = gr.Number(first.seed, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120)
                dice = gr.Button("New seed ↻", min_width=110, elem_classes="dice")
            with gr.Accordion("More settings", open=False):
                steps = gr.Slider(1, 60, value=known["steps"], step=1, label="Denoising steps")
                guidance = gr.Slider(0, 8, value=known["guidance"], step=0.1, label="Guidance by the prompt")
                more = [setting.build() for setting in modality.settings]
                files = gr.CheckboxGroup(list(modality.kinds), value=list(modality.usual), label="Files to write")
            usual = round(first.seconds * modality.domain.FPS), known["steps"]
            told = gr.Markdown(_estimate(bench, modality, *usual), elem_classes="estimate")
            with gr.Row():
                go = gr.Button("Generate", variant="primary", min_width=140)
                stop = gr.Button("Stop", min_width=140)
        with gr.Column(scale=6, min_width=320):
            progress = gr.HTML(
                '<p class="hint">Press an example above, or write your own and press Generate. Stop keeps what is '
                "done.</p>",
                label="Progress", elem_classes="progress", js_on_load=None,
            )  # fmt: skip
            views = modality.views()
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
                    upload = gr.UploadButton("Load from a .json file", file_types=[".json"], size="sm")

    inputs = [timeline, seconds, seed, steps, guidance, *more, files]
    outputs = [progress, *views, download, settings, python, command]
    name = modality.name

    def generate(*values: Any) -> Iterator[list[Any]]:
        with _told_by_gradio():
            yield from run(bench, modality, _session(values[-1]), values[:-1], gr.skip())

    def expect(request: Any) -> None:
        bench.expect(_session(request))

    def halt(request: Any) -> None:
        gr.Info(bench.stop(_session(request)))

    def ask(*values: Any) -> str:
        return estimate(bench, modality, values)

    def read(settings: str) -> list[Any]:
        with _told_by_gradio():
            return values_of(modality, _json(settings))

    def read_file(file: Any) -> list[Any]:
        with _told_by_gradio():
            return values_of(modality, _json(Path(file).read_text(encoding="utf-8", errors="replace")))

    def roll() -> int:
        return secrets.randbelow(MOST_SEED)

    _named(generate, [*modality.names, "request"], gr.Request)
    _named(expect, ["request"], gr.Request)
    _named(halt, ["request"], gr.Request)
    _named(ask, modality.names)
    work: dict[str, Any] = {
        "inputs": inputs, "outputs": outputs, "concurrency_id": DEVICE, "concurrency_limit": 1,
        "show_progress": "minimal", "show_progress_on": progress,
    }  # fmt: skip
    go.click(expect, queue=False, api_name=f"{name}_join", show_progress="hidden").then(
        generate, api_name=name, **work
    )
    for number, (button, example) in enumerate(zip(buttons, modality.examples, strict=True), 1):

        def fill(example: Example = example) -> list[Any]:
            line: dict[str, Any] = {"timeline": example.timeline, "seed": example.seed}
            line["parameters"] = {"frames": round(example.seconds * modality.domain.FPS), **example.parameters}
            return values_of(modality, line)

        _named(fill, [])
        filled = button.click(
            fill, outputs=inputs, queue=False, api_name=f"{name}_example_{number}", show_progress="hidden"
        )
        joined = filled.then(expect, queue=False, api_visibility="private", show_progress="hidden")
        joined.then(generate, api_visibility="private", **work)
    stop.click(halt, queue=False, api_name=f"{name}_stop", show_progress="hidden")
    dice.click(roll, outputs=seed, queue=False, api_name=f"{name}_dice", show_progress="hidden")
    load.click(read, inputs=text, outputs=inputs, queue=False, api_name=f"{name}_load")
    upload.upload(read_file, inputs=upload, outputs=inputs, queue=False, api_name=f"{name}_load_file")
    changes = [timeline.input, *[part.change for part in (timeline, seconds, steps, *more)], progress.change]
    gr.on(
        changes, ask, inputs=inputs, outputs=told, queue=False, api_name=f"{name}_estimate", show_progress="hidden",
        trigger_mode="always_last",
    )  # fmt: skip
    return inputs


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


def _json(text: str) -> Any:
    if len(text) > MOST_SETTINGS:
        raise UserError(f"settings are {MOST_SETTINGS} characters at most; given {len(text)}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the settings are not JSON: {one_line(error)}") from error


def _session(request: Any) -> str:
    return str(getattr(request, "session_hash", None) or "local")


def _named(function: Any, names: Sequence[str], request: Any = None) -> None:
    """Give a function of ``*values`` the parameters' names, which the API shows."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    notes = {"request": request} if request is not None else {}
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=notes.get(name, inspect.Parameter.empty)) for name in names]
    )
    function.__annotations__ = dict(notes)
