"""One running page for all tests of this folder."""

import importlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from longtake.demos.app import launch, warm_up
from longtake.demos.bench import Bench


@pytest.fixture(scope="session")
def page() -> Iterator[SimpleNamespace]:
    """page.url; page.bench; page.client() is a new gradio_client."""
    client = importlib.import_module("gradio_client")
    bench = Bench()
    demo, url = launch(bench, "127.0.0.1", 0)
    warm_up(bench)
    yield SimpleNamespace(url=url, bench=bench, client=lambda: client.Client(url, verbose=False))
    demo.close()
    bench.close()
