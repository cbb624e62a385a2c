"""The rules of the house, read off the source: who may import whom, where devices are named, what an import costs."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("video", "motion", "speech", "medical")
FOLDERS = ("gen", "kernels", *DOMAINS, "demos")
# Folder -> the parts of longtake that it may import; "gen" stands for the modules of longtake itself.
MAY_IMPORT = {
    "kernels": {"kernels"},
    "gen": {"gen", "kernels"},
    **{domain: {"gen", "kernels", domain} for domain in DOMAINS},
    "demos": {"gen", "kernels", "demos", *DOMAINS},
}
PLUGINS = ROOT / "demos/comfyui"  # nodes for another program, which loads the folder; no part of the package
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if PLUGINS not in path.parents]


def package_of(path: Path) -> str:
    """Full name of the package that a file lies in: kernels/plan/tiles.py lies in longtake.kernels.plan."""
    first, *wings = path.relative_to(ROOT).parts[:-1]
    return ".".join(["longtake", *([] if first == "gen" else [first]), *wings])


def imported_modules(source: str | ast.AST, package: str) -> Iterator[str]:
    """Full names of all modules that a source imports, in functions too; relative imports are resolved."""
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            full = ".".join(filter(None, [base, node.module]))
            yield full
            yield from (f"{full}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The folder that a module of ours lives in; None for a module of somebody else."""
    parts = module.split(".")
    if parts[0] != "longtake":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "gen"


def forbidden_imports(source: str, folder: str) -> list[str]:
    package = "longtake" if folder == "gen" else f"longtake.{folder}"
    rooms = ((module, room_of(module)) for module in imported_modules(source, package))
    # `from longtake import x` also yields "longtake", which is gen; for kernels even that is too much.
    return sorted(
        {module for module, room in rooms if room is not None and room not in MAY_IMPORT[folder]} - {"longtake"}
    )


class _Runs(ast.NodeTransformer):
    """What of a module can run once it is imported: not the bodies of `if TYPE_CHECKING:`, which only a type checker
    reads, and of `if __name__ == "__main__":`, where the file is a program and no module."""

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        self.generic_visit(node)
        never = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
        return node.orelse if ast.unparse(node.test) in never else node


def import_circles(sources: dict[str, str], rooms: Callable[[str], str] = str) -> list[list[str]]:
    """The circles among modules (or among their `rooms`) that import each other, each sorted; none is [].

    sources: full module name -> source. An import inside a function is an arrow too, and so is a string that is the
    full name of one of the modules (`import_module("...")`); what `_Runs` leaves out is none.
    """
    arrows: dict[str, set[str]] = {rooms(module): set() for module in sources}
    for module, source in sources.items():
        package = module if any(other.startswith(f"{module}.") for other in sources) else module.rpartition(".")[0]
        tree = _Runs().visit(ast.parse(source))
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        texts = {value for value in constants if isinstance(value, str)}
        named = {*imported_modules(tree, package), *texts} & set(sources)
        arrows[rooms(module)] |= {rooms(other) for other in named} - {rooms(module)}

    def reached(start: str) -> set[str]:
        found, ahead = set[str](), [start]
        while ahead:
            fresh = arrows[ahead.pop()] - found
            found |= fresh
            ahead += fresh
        return found

    beyond = {room: reached(room) for room in arrows}
    circles = {tuple(sorted(o for o in beyond[room] if room in beyond[o])) for room in arrows if room in beyond[room]}
    return [list(circle) for circle in sorted(circles)]


def sources_of(folder: str) -> dict[str, str]:
    """Full module name -> source of all files of a folder; a package's __init__ stands under the package's name."""
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == folder]
    names = [package_of(path) + ("" if path.stem == "__init__" else f".{path.stem}") for path in paths]
    return {name: path.read_text() for name, path in zip(names, paths, strict=True)}


def parameters(source: str) -> dict[str, int]:
    """Most parameters that a function (or Triton kernel) of each name takes, `self`, `*args` and `**kwargs` counted."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            count = len([*a.posonlyargs, *a.args, *a.kwonlyargs]) + (a.vararg is not None) + (a.kwarg is not None)
            found[node.name] = max(found.get(node.name, 0), count)
    return found


def device_names(source: str) -> list[int]:
    """Lines that name a CUDA device in a string (docstrings apart) or call `.cuda()`."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    lines = []
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        if is_text and re.search(r"\bcuda\b", node.value):  # type: ignore[attr-defined]
            lines.append(node.lineno)  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            lines.append(node.lineno)
    return lines


def test_the_detectors_detect() -> None:
    assert forbidden_imports("def f():\n    from longtake.video import scope", "gen") == [
        "longtake.video",
        "longtake.video.scope",
    ]
    assert forbidden_imports("from . import video", "gen") == ["longtake.video"]
    assert forbidden_imports("from ..motion import model", "video") == ["longtake.motion", "longtake.motion.model"]
    assert forbidden_imports("from longtake import noise", "kernels") == ["longtake.noise"]
    assert forbidden_imports("import longtake.demos.app", "video") == ["longtake.demos.app"]
    assert forbidden_imports("from longtake.kernels import masks\nimport torch, video", "gen") == []
    lazy = {"p.a": "def f():\n    from p import b", "p.b": "import_module('p.c')", "p.c": "from p.a import x"}
    lazy["p.d"] = "import p.a"
    assert import_circles(lazy) == [["p.a", "p.b", "p.c"]]
    assert import_circles({**lazy, "p.c": ""}) == []
    assert import_circles({**lazy, "p.c": "if TYPE_CHECKING:\n    import p.a"}) == []
    assert import_circles({**lazy, "p.c": 'if __name__ == "__main__":\n    import p.a'}) == []
    assert import_circles({**lazy, "p.c": "if typing.TYPE_CHECKING:\n    x = 1\nelse:\n    import p.a"}) != []
    assert import_circles({"p": "", "p.a": "from . import b", "p.b": "from .a import x"}) == [["p.a", "p.b"]]
    assert parameters("class A:\n    def f(self, a, /, b, *c, d=1, **e): ...\ndef f(a): ...") == {"f": 6}
    assert device_names('"""cuda"""\nx = "cuda:0"\ny.cuda()\nz = "no CUDA"') == [2, 3]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert forbidden_imports(path.read_text(), folder) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_devices_are_named_in_one_place_only(path: Path) -> None:
    if path != ROOT / "gen/device.py":
        assert device_names(path.read_text()) == []


def test_kernels_import_torch_and_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "longtake", "triton"}
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        others = {name.split(".")[0] for name in imported_modules(path.read_text(), "longtake.kernels")} - allowed
        assert not others, f"{path.name} imports {others}"


def test_no_import_circle_in_kernels() -> None:
    """Neither among its files nor among its wings. The one table of lazy names, kernels/__init__.py, names modules
    without the package in front, and is no arrow."""
    sources = sources_of("kernels")
    assert len(sources) > 50 and import_circles(sources) == []
    assert import_circles(sources, lambda module: ".".join(module.split(".")[:3])) == []


def test_no_import_circle_in_the_house() -> None:
    """Not even through imports inside functions. longtake/__init__.py, which Python runs before any module of ours, is
    left out: it imports none itself, and its table of public names loads a module when a name is asked for."""
    sources = {name: source for folder in FOLDERS for name, source in sources_of(folder).items()}
    root = sources.pop("longtake")
    assert not [module for module in imported_modules(root, "longtake") if room_of(module)]
    assert len(sources) > 150 and import_circles(sources) == []


def test_no_module_hides_a_package_or_the_standard_library() -> None:
    for path in SOURCES:
        assert path.stem not in sys.stdlib_module_names - {"__main__", "__init__"}, path
        if path.parent == ROOT / "gen":
            assert path.stem not in FOLDERS, path


def test_every_folder_with_code_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted({package_of(path) for path in SOURCES})
    assert set(settings["package-dir"].values()) == {path.relative_to(ROOT).parts[0] for path in SOURCES}


def test_only_kernels_and_domains_have_wings() -> None:
    wings = {path.relative_to(ROOT).parts[0] for path in SOURCES if len(path.relative_to(ROOT).parts) > 2}
    assert wings <= {"kernels", *DOMAINS}
    assert max(len(path.relative_to(ROOT).parts) for path in SOURCES) <= 3


def broken_lines(source: str) -> list[str]:
    """Lines of docstrings that a tool cut short in the middle of a sentence."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (ast.get_docstring(node) or "").split("\n")
            for one, two in zip(lines, lines[1:], strict=False):
                ended = one.endswith((":", ".", ";")) or one.startswith(" ")
                if 0 < len(one) < 30 and two[:1].islower() and not ended:
                    found.append(one)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_is_cut_to_a_word_a_line(path: Path) -> None:
    assert broken_lines('"""A loop in which the\nnet\nsees frames."""') == ["A loop in which the", "net"]
    assert broken_lines(path.read_text()) == []


def test_no_file_has_grown_past_600_lines() -> None:
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 600}
    assert not long


def test_the_nodes_for_comfyui_import_longtake_by_its_name_and_are_imported_by_nothing_of_ours() -> None:
    for path in sorted(PLUGINS.rglob("*.py")):
        source = path.read_text()
        own = {name for name in imported_modules(source, "pack") if name.startswith("pack")}
        assert own <= {"pack", "pack.nodes", "pack.nodes.NODE_CLASS_MAPPINGS", "pack.nodes.NODE_DISPLAY_NAME_MAPPINGS"}
        assert device_names(source) == [] and len(source.splitlines()) <= 600 and broken_lines(source) == []
    assert not [path for path in SOURCES if "comfyui" in path.read_text()]


def test_no_function_takes_more_than_32_parameters() -> None:
    """The two long pipelines take the most, 32 and 30: all that a request can say. Kernels take tuples of tensors."""
    many = {
        f"{path.relative_to(ROOT)}: {name}": count
        for path in SOURCES
        for name, count in parameters(path.read_text()).items()
        if count > 32
    }
    assert not many


def test_import_longtake_takes_less_than_300_ms_and_no_torch() -> None:
    code = (
        "import sys, time; start = time.process_time(); import longtake; seconds = time.process_time() - start\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'av', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(seconds)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    assert statistics.median(float(run.stdout) for run in runs) < 0.3


def test_every_public_name_of_gen_loads_and_unknown_ones_do_not() -> None:
    import longtake

    for name, module in longtake._PUBLIC.items():
        if room_of(module) == "gen":
            assert getattr(longtake, name).__name__ == name
    assert longtake.__version__
    assert "Timeline" in dir(longtake)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = longtake.nonsense
