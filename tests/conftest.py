"""What all tests share: no network, no GPU unless asked for, and a way to run the command line as a user does."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores, one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
_cache = tempfile.TemporaryDirectory(prefix="longtake-test-cache-")
os.environ["LONGTAKE_CACHE"] = _cache.name  # removed with the process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def gradients_stay_on() -> Iterator[None]:
    """What runs without gradients must leave them on for whoever comes next, a test or a user's training."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("gradients were left switched off")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright. Skips the test where one of the two is missing."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("LONGTAKE_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on the path: apt-get install chromium, or set LONGTAKE_CHROMIUM")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_cli("video", "a prompt", "--frames", "8") in a process of its own; env=... adds variables."""
    from processes import run as run_python

    def run(*args: str, env: dict[str, str] | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "longtake", *args, env={**os.environ, **(env or {})}, timeout=timeout)

    return run
