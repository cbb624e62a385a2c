"""What all tests share: no network, no GPU unless asked for, and a way to run the command line as a user does."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# The tests begin hundreds of processes: in a fresh environment torch and diffusers are compiled once, not in each.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores, one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
_cache = tempfile.TemporaryDirectory(prefix="longtake-test-cache-")
os.environ["LONGTAKE_CACHE"] = _cache.name  # removed with the process


# Files of more than a minute, so that with `--no-loadscope-reorder` no worker begins one when the other has ended.
LONG_FILES = (
    "kernels/test_strategies.py", "gen/test_distributed.py", "gen/test_batch.py", "video/test_pipeline.py",
    "medical/test_train.py", "video/test_command.py", "video/test_parallelize_unet.py", "video/test_dit_stocks.py",
    "motion/test_pair_made.py", "video/test_dit_pipeline.py", "video/test_evaluate.py", "motion/test_path.py",
    "gen/test_doors.py", "speech/test_valle_r_learns.py", "test_readme.py", "video/test_train.py",
    "video/test_unet_motion.py", "kernels/test_acceptance.py", "demos/test_browser.py", "demos/test_app.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        here, last = Path(__file__).parent, len(LONG_FILES)
        places = {here / name: place for place, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: places.get(item.path, last))
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
