"""The folder `kernels` at the project's root must never stand in for the installed package of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code with the project's root first on sys.path, as `python -m` does there."""
    program = f"import sys; sys.path[:0] = {[str(entry) for entry in (ROOT, *path)]!r}\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=600)


def test_an_installed_package_called_kernels_wins_over_our_folder(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from kernels.inner import get_kernel\nORIGIN = 'hub'\n")
    (package / "inner.py").write_text("def get_kernel():\n    return 'theirs'\n")
    code = (
        "import kernels; from kernels import get_kernel; import kernels.inner, longtake.kernels\n"
        "print(kernels.ORIGIN, get_kernel(), kernels.__file__)\n"
        "print(longtake.kernels.Partition.even(4, 2).sizes, longtake.kernels is kernels)"
    )
    run = python(code, tmp_path)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == f"hub theirs {package / '__init__.py'}"
    assert second == "(2, 2) False"


def test_without_one_libraries_that_look_for_it_conclude_that_it_is_absent() -> None:
    """transformers finds the folder and imports it to read a version: an error there would break every model import."""
    code = (
        "from transformers.utils.import_utils import is_kernels_available\n"
        "print(is_kernels_available())\n"
        "import transformers.integrations.hub_kernels\n"
        "from diffusers import UNet3DConditionModel\n"
        "print(UNet3DConditionModel.__name__)\n"
        "try:\n    from kernels import get_kernel\nexcept ImportError as error:\n    print('get_kernel' in "
        "str(error))\n"
        "import kernels, longtake.kernels\n"
        "print(kernels.Partition is longtake.kernels.Partition)\n"
    )
    run = python(code)
    assert run.stdout.split() == ["False", "UNet3DConditionModel", "True", "True"], run.stderr


def test_importing_the_package_does_not_import_torch_and_names_its_offers() -> None:
    code = (
        "import longtake.kernels as k; print('torch' in sys.modules, 'Transport' in dir(k))\n"
        "try:\n    k.Transprt\nexcept AttributeError as error:\n    print('Transport' in str(error))"
    )
    assert python(code).stdout.split() == ["False", "True", "True"]
    loaded = python("import longtake.kernels as k\nfor name in k.__all__: print(getattr(k, name).__name__ == name)")
    assert set(loaded.stdout.split()) == {"True"}, loaded.stderr
