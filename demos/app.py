"""The page: one tab a modality and one for the kernels; and its server, which lets nothing out.

    demo, look = build(Bench())
    serve("127.0.0.1", 7860)

Gradio's own calls home are off, fonts are the system's, and a Content-Security-Policy header forbids a browser to ask
any other machine, whatever a library puts into the page.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longtake.errors import UserError, one_line

QUEUE = 256  # runs that may wait
MOST_UPLOAD = "512mb"  # a file
MOST_UPLOADS = 4 * 2**30  # bytes that the page's folder may hold before it takes no more
WRONG_LOGIN_SECONDS = 1.0
WARM_UP_AFTER = 2.0  # seconds: the first page comes first
KEEP_SECONDS = 3600  # files of the page's cache
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "frame-src 'self'; worker-src 'self' blob:; form-action 'self'; frame-ancestors 'self'; base-uri 'self'; "
    "object-src 'none'"
)
# labels are quieter than what they name, fields have an outline, and boxes none
_LOOK: dict[str, str] = {
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_border_width": "0px",
    "block_label_text_color": "*neutral_500",
    "block_label_text_weight": "500",
    "block_title_background_fill": "transparent",
    "block_title_background_fill_dark": "transparent",
    "block_title_text_color": "*neutral_600",
    "block_title_text_color_dark": "*neutral_400",
    "block_title_text_weight": "500",
    "block_title_text_size": "*text_sm",
    "block_title_padding": "0px",
    "form_gap_width": "0px",
    "input_background_fill": "*background_fill_primary",
    "input_background_fill_dark": "*neutral_900",
    "input_border_width": "1px",
    "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_700",
    "input_shadow": "none",
    "button_secondary_background_fill": "*background_fill_primary",
    "button_secondary_background_fill_dark": "*neutral_800",
    "button_border_width": "1px",
    "button_secondary_border_color": "*neutral_300",
    "button_secondary_border_color_dark": "*neutral_700",
    "button_secondary_shadow": "none",
    "button_primary_shadow": "none",
    "button_large_text_weight": "600",
    "button_large_padding": "8px 18px",
}
_STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.masthead h1 { margin: 0 0 .15rem; font-size: 1.45rem; letter-spacing: -.01em; }
.masthead p { margin: 0; opacity: .7; }
.about p { margin: 0; opacity: .8; max-width: 60rem; }
.examples { flex-wrap: wrap !important; gap: .5rem !important; justify-content: flex-start !important; }
.examples button { flex: 0 0 auto !important; width: auto !important; font-weight: 500; }
.studio { align-items: flex-start !important; gap: 2rem !important; }
.form { background: transparent !important; border: 0 !important; gap: 1rem !important; box-shadow: none !important; }
.label-wrap { text-align: left; }
.label-wrap .icon { flex-shrink: 0; margin-left: .5rem; }
.lengths { align-items: flex-end !important; }
.lengths .block { flex: 1 1 7rem !important; min-width: 7rem !important; }
.lengths button { flex: 0 0 auto !important; font-weight: 500; }
.estimate p { margin: .1rem 0; font-size: .9rem; opacity: .85; font-variant-numeric: tabular-nums; }
.progress { scroll-margin-top: 1rem; }
.bar { display: grid; gap: .35rem; }
.bar span { font-variant-numeric: tabular-nums; }
.bar progress { width: 100%; height: .5rem; appearance: none; border: 0; border-radius: 4px; overflow: hidden; }
.bar progress, .bar progress::-webkit-progress-bar { background: var(--border-color-primary); }
.bar progress::-webkit-progress-value { background: var(--color-accent); }
.bar progress::-moz-progress-bar { background: var(--color-accent); }
.files .empty { display: none; }
.film video { background: #fff; border-radius: 8px; margin: 0 auto; }
.film.crisp video, .glimpse { image-rendering: pixelated; }
.mono textarea { font-family: var(--font-mono); font-size: .8rem; white-space: pre; overflow-x: auto; }
.column, .cm-editor, .codemirror-wrapper { min-width: 0; max-width: 100%; }
.hint { opacity: .75; margin: .2rem 0; }
.done { font-weight: 600; margin: .2rem 0; }
.glimpse { width: 100%; border-radius: 8px; margin-top: .6rem; background: #fff; }
.viewer iframe {
  width: 100%; height: min(62vh, 440px); border: 1px solid var(--border-color-primary); border-radius: 8px;
}
.plots figure { margin: 0 0 .6rem; }
.plots figcaption { font-size: .85rem; opacity: .8; }
.plots svg { width: 100%; height: auto; display: block; }
.plots text { fill: currentColor; opacity: .75; font-size: 11px; }
.plots polyline { fill: none; stroke: var(--color-accent); stroke-width: 1.6; stroke-linejoin: round; }
.plots .grid { stroke: currentColor; opacity: .15; }
.plots .mark { stroke: currentColor; opacity: .6; stroke-dasharray: 4 4; }
.mask img { image-rendering: pixelated; }
footer { opacity: .6; }
@media (max-width: 620px) {
  .film.crisp video { height: 256px !important; width: auto; }
  .gradio-container { padding: .5rem !important; }
  .tab-wrapper, .tab-container { max-width: calc(100vw - 3rem); overflow-x: auto; overflow-y: hidden; }
  .tab-container button { padding: 0 .55rem !important; }
  .ranks .table-container, .ranks .table-wrap { max-width: calc(100vw - 4.5rem); overflow-x: auto; }
}
"""


def build(bench: Any) -> tuple[Any, dict[str, Any]]:
    """The page as gr.Blocks, and what its ``launch`` needs to look as it should."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(bench.folder / "page"))
    with _no_stub_files():
        import gradio as gr
    from longtake.demos.form import Form
    from longtake.demos.kernels_tab import kernels_tab
    from longtake.domain import domain_of, installed

    with gr.Blocks(
        title="longtake", analytics_enabled=False, delete_cache=(KEEP_SECONDS // 4, KEEP_SECONDS)
    ) as demo:  # fmt: skip
        gr.HTML(
            '<div class="masthead"><h1>longtake</h1>'
            "<p>Long takes from short-clip generators, on this machine.</p></div>",
            padding=False,
            js_on_load=None,
        )
        with gr.Tabs():
            for name in installed():
                with gr.Tab(name.capitalize(), id=name):
                    Form(bench, domain_of(name)).build()
            with gr.Tab("Kernels", id="kernels") as kernels:
                kernels_tab(kernels)
    demo.queue(max_size=QUEUE, default_concurrency_limit=4)
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="md", font=fonts,
        font_mono=["ui-monospace", "Consolas", "Menlo", "monospace"],
    ).set(**_LOOK)  # fmt: skip
    return demo, {"theme": theme, "css": _STYLE}


@contextmanager
def _no_stub_files() -> Iterator[None]:
    """Gradio rewrites type stubs beside its own modules at every import, more than a second of it; it leaves out
    components whose file cannot be found."""
    import inspect

    stock = inspect.getfile

    def getfile(thing: Any) -> str:
        if str(getattr(thing, "__module__", "")).startswith("gradio."):
            raise OSError("no stub file, please")
        return stock(thing)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = stock


def launch(bench: Any, host: str, port: int, auth: tuple[str, str] | None = None) -> tuple[Any, str]:
    """Start the server in a thread; (the page, its address). Raises UserError when the port is taken."""
    from longtake.demos import speech_api
    from starlette.middleware import Middleware

    demo, look = build(bench)
    os.environ["GRADIO_SERVER_NAME"] = host
    names = frozenset() if auth is not None else frozenset({host.lower(), "localhost", "127.0.0.1", "[::1]"})
    try:
        app, url, _ = demo.launch(
            server_name=host,
            server_port=port or _free_port(host),
            auth=None if auth is None else Login(*auth),
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            share=False,
            inbrowser=False,
            max_file_size=MOST_UPLOAD,
            allowed_paths=[],
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            footer_links=["api"],
            app_kwargs={
                "middleware": [Middleware(Guard, names=names, folder=bench.folder)],
                **dict.fromkeys(("openapi_url", "docs_url", "redoc_url")),
            },
            **look,
        )
    except OSError as error:
        raise UserError(f"cannot serve on {host}:{port}: {one_line(error)}") from error
    speech_api.add(app, bench, auth)
    return demo, url


def serve(
    host: str, port: int, auth: tuple[str, str] | None = None, output: Path | None = None, settings: Any = None
) -> None:  # fmt: skip
    """Serve until Ctrl-C or SIGTERM; models and torch are loaded while the visitor reads. For the main thread."""
    from longtake.demos.bench import Bench

    bench = Bench(keep=output, settings=settings)
    ended = threading.Event()
    before = {kind: signal.signal(kind, lambda *_: ended.set()) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        demo, url = launch(bench, host, port, auth)
        print(f"longtake is at {url}  (Ctrl-C ends it)", flush=True)
        warm = threading.Timer(WARM_UP_AFTER, warm_up, (bench,))
        warm.daemon = True
        warm.start()
        ended.wait()
        demo.close()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        bench.close()


def warm_up(bench: Any) -> None:
    """Load the models that ship, so that the first run need not wait for them; a fault shows when they are used."""
    from longtake.demos.form import Form
    from longtake.domain import domain_of, installed

    for name in installed():
        with suppress(UserError):
            form = Form(bench, domain_of(name))
            bench.maker.pipe(form.request_of(form.first_line()))


class Guard:
    """ASGI middleware: only the names that this server has are answered, so that no page elsewhere can be made to look
    as if it came from here; no file is taken in when `folder` holds `MOST_UPLOADS`; every answer carries the
    Content-Security-Policy. names: hosts that may be asked for; empty: any (a login then guards the page)."""

    def __init__(self, app: Any, names: frozenset[str], folder: Path) -> None:
        self.app, self.names, self.folder = app, names, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            if self.names and _host_of(headers.get("host", "")) not in self.names:
                await _refuse(send, 421, "this page has another name")
                return
            if scope["path"].rstrip("/").endswith("/upload") and _size(self.folder) > MOST_UPLOADS:
                await _refuse(send, 507, "this page holds as many files as it can: try again in an hour")
                return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)


def _size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return total


def _host_of(text: str) -> str:
    """The name in a Host header, without its port."""
    name = text[: text.index("]") + 1] if text.startswith("[") and "]" in text else text.partition(":")[0]
    return name.lower()


async def _refuse(send: Any, code: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


class Login:
    """Whether a name and a password are right; a wrong one takes a second, one after the other."""

    def __init__(self, user: str, password: str) -> None:
        self.expected = f"{user}:{password}".encode()
        self._turn = threading.Lock()

    def __call__(self, user: str, password: str) -> bool:
        import hmac
        import time

        if hmac.compare_digest(f"{user}:{password}".encode(errors="replace"), self.expected):
            return True
        with self._turn:
            time.sleep(WRONG_LOGIN_SECONDS)
        return False


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
