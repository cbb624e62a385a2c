"""The nodes for ComfyUI: loaded as ComfyUI loads a folder, run by a stand-in of its executor with the model that ships,
and the example workflows, which fit the nodes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from longtake import LongVideoPipeline, Timeline, UserError
from longtake.video.check import Kind
from longtake.video.pipeline import Context

PACK = Path(__file__).resolve().parents[2] / "demos/comfyui"
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json") if not path.stem.endswith("_api"))
# nodes of ComfyUI itself that the workflows use: inputs by name, and what they take
CORE = {
    "PreviewImage": {"images": "IMAGE"},
    "SaveAnimatedWEBP": {
        "images": "IMAGE", "filename_prefix": "STRING", "fps": "FLOAT", "lossless": "BOOLEAN", "quality": "INT",
        "method": ["default", "fastest", "slowest"],
    },
}  # fmt: skip


class Interrupted(Exception):
    """As comfy.model_management.InterruptProcessingException."""


@pytest.fixture
def app(monkeypatch):
    """ComfyUI's modules as far as the nodes use them. app.bars: what each bar was told; app.stop_after: steps."""
    root, utils, management = (ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management"))
    root.bars, root.stop_after, root.steps = [], None, 0

    class ProgressBar:
        def __init__(self, total):
            self.total, self.told = total, []
            root.bars.append(self)

        def update_absolute(self, value, total=None, preview=None):
            self.told.append((value, total))

    def throw_exception_if_processing_interrupted():
        root.steps += 1
        if root.stop_after is not None and root.steps > root.stop_after:
            raise Interrupted

    utils.ProgressBar = ProgressBar
    management.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted
    management.get_torch_device = lambda: torch.device("cpu")
    root.utils, root.model_management = utils, management
    for module in (root, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return root


def load(folder):
    """A folder of custom_nodes, as ComfyUI's load_custom_node imports it: by its path, under a name that is a path."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    custom_nodes = tmp_path_factory.mktemp("ComfyUI") / "custom_nodes"
    custom_nodes.mkdir()
    (custom_nodes / "longtake").symlink_to(PACK)
    return load(custom_nodes / "longtake")


@pytest.fixture(scope="module")
def pipeline(pack):
    return pack.NODE_CLASS_MAPPINGS["LongtakeLoadPipeline"]().load("kaykit-small", "float32")[0]


def run_node(pack, name, **given):
    """One node as ComfyUI's executor calls it: by FUNCTION, with defaults of its widgets; outputs by their names."""
    node = pack.NODE_CLASS_MAPPINGS[name]
    kinds = node.INPUT_TYPES()
    usual = {key: kind[1]["default"] for key, kind in kinds["required"].items() if "default" in kind[1]}
    made = getattr(node(), node.FUNCTION)(**{**usual, **given})
    result = made["result"] if isinstance(made, dict) else made
    assert len(result) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return dict(zip(node.RETURN_NAMES, result, strict=True))


def test_every_node_is_defined_as_comfyui_asks(pack) -> None:
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS) == {
        "LongtakeScope", "LongtakeTimeline", "LongtakeLoadPipeline", "LongtakeGenerate", "LongtakeExtend",
        "LongtakeRedo", "LongtakeCheck",
    }  # fmt: skip
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        assert node.CATEGORY == "longtake" and callable(getattr(node, node.FUNCTION)) and node.DESCRIPTION, name
        kinds = node.INPUT_TYPES()
        assert set(kinds) <= {"required", "optional", "hidden"}
        for key, (kind, more) in {**kinds["required"], **kinds.get("optional", {})}.items():
            assert more["tooltip"].endswith("."), (name, key)
            if kind in ("INT", "FLOAT"):
                assert more["min"] <= more["default"] <= more["max"], (name, key)
            if isinstance(kind, list):
                assert more["default"] in kind


def test_importing_the_pack_imports_neither_longtake_nor_torch() -> None:
    import subprocess

    code = (
        f"import sys, importlib.util as u; s = u.spec_from_file_location('p', {str(PACK / '__init__.py')!r})\n"
        "m = u.module_from_spec(s); sys.modules['p'] = m; s.loader.exec_module(m)\n"
        "assert not {'torch', 'longtake', 'comfy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_kinds_that_a_tooltip_names_are_those_there_are(pack) -> None:
    assert sys.modules[pack.__name__ + ".nodes"].KINDS == tuple(Kind)


def test_generate_extend_and_redo_are_the_pipelines_own_results_with_a_bar(app, pack, pipeline) -> None:
    few = {"steps": 2, "guidance": 1.0, "pipeline": pipeline}
    made = run_node(pack, "LongtakeGenerate", prompt="a knight walks", frames=6, fps=8.0, seed=5, **few)
    images = made["images"]
    assert images.shape == (6, 64, 64, 3) and images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1
    stock = LongVideoPipeline.from_pretrained("kaykit-small")
    same = {"num_inference_steps": 2, "guidance_scale": 1.0}
    expected = stock("a knight walks", 6, fps=8.0, seed=5, **same)
    assert np.array_equal(np.rint(images.numpy() * 255), expected.frames)
    assert app.bars[0].total == 2 and app.bars[0].told == [(1, 2), (2, 2)] and made["fps"] == 8.0

    longer = run_node(pack, "LongtakeExtend", run=made["run"], prompt="a knight jumps", frames=4, seed=6, **few)
    assert torch.equal(longer["images"][:6], images) and longer["images"].shape[0] == 10
    context = Context.extend(expected.latents, 4, "a knight walks")
    more = stock("a knight jumps", 4, fps=8.0, seed=6, context=context, **same)
    assert torch.equal(longer["run"].latents, more.latents)
    assert longer["run"].last_prompt == "a knight jumps" and longer["fps"] == 8.0

    again = run_node(
        pack, "LongtakeRedo", run=longer["run"], prompt="a knight falls over", start=2, stop=5, seed=7, **few
    )
    kept, redone = [0, 1, 5, 6, 7, 8, 9], [2, 3, 4]
    assert torch.equal(again["run"].latents[kept], longer["run"].latents[kept])
    assert not torch.equal(again["images"][redone], longer["images"][redone])
    assert again["run"].last_prompt == "a knight jumps", "the end of the film was not made anew"


def test_cancel_ends_the_run_at_the_step_and_the_next_one_is_whole(app, pack, pipeline) -> None:
    given = {"pipeline": pipeline, "prompt": "a mage walks", "frames": 4, "steps": 3, "guidance": 1.0}
    whole = run_node(pack, "LongtakeGenerate", **given)["images"]
    app.stop_after = app.steps + 1
    with pytest.raises(Interrupted):
        run_node(pack, "LongtakeGenerate", **given)
    assert app.bars[-1].told == [(1, 3), (2, 3)]
    app.stop_after = None
    assert torch.equal(run_node(pack, "LongtakeGenerate", **given)["images"], whole)


def test_a_timeline_of_lines_and_a_scope_are_longtakes_own(app, pack, pipeline) -> None:
    text = "0s: a rogue walks\n\n0.5s: a rogue jumps |"
    timeline = run_node(pack, "LongtakeTimeline", text=text, fps=8.0, blend=2)["timeline"]
    assert timeline == Timeline.parse("0s: a rogue walks | 0.5s: a rogue jumps", fps=8.0, blend=2)
    scope = run_node(pack, "LongtakeScope", window=2, global_frames=3, gate="soft")["scope"]
    assert (scope.window, scope.global_frames, str(scope.gate), scope.bias) == (2, 3, "soft", 10.0)
    given = {"pipeline": pipeline, "frames": 8, "fps": 8.0, "steps": 1, "guidance": 1.0, "seed": 3}
    made = run_node(pack, "LongtakeGenerate", timeline=timeline, scope=scope, **given)
    plain = pipeline(timeline, 8, fps=8.0, seed=3, num_inference_steps=1, guidance_scale=1.0, scope=scope)
    assert torch.equal(made["run"].latents, plain.latents) and made["run"].last_prompt == "a rogue jumps"


def test_check_tells_of_any_frames(app, pack) -> None:
    from faulty_films import straight

    film = straight(80, seed=61)
    images = torch.from_numpy(np.concatenate([film[:40], film[46:]])).float() / 255
    node = pack.NODE_CLASS_MAPPINGS["LongtakeCheck"]
    shown = getattr(node(), node.FUNCTION)(images=images, fps=24.0, allow="")
    report, clean, picture = shown["result"]
    assert not clean and "seam" in report and " 40 " in report and shown["ui"]["text"] == [report]
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[3] == 3 and picture.min() < 0.5
    assert run_node(pack, "LongtakeCheck", images=images, fps=24.0, allow="seam, cut")["clean"] is True
    with pytest.raises(UserError, match="allow"):
        run_node(pack, "LongtakeCheck", images=images, fps=24.0, allow="seems")


def test_a_loaded_video_transformer_makes_extends_and_redoes(app, pack) -> None:
    """A stock Wan pipeline as ComfyUI users load it, with tiny random parts."""
    from dit_pipelines import wan

    nodes = pack.NODE_CLASS_MAPPINGS
    (pipe,) = nodes["LongtakeLoadPipeline"]().load("kaykit-small", "auto", wan())
    assert pipe.record.name == "WanTransformer3DModel"
    more = {"steps": 2, "guidance": 3.0, "seed": 1, "negative": ""}
    made = nodes["LongtakeGenerate"]().make(pipe, "a dog runs", 9, 16.0, 32, 32, **more)
    images, run = answers(made)
    assert images.shape == (9, 32, 32, 3) and 0 <= images.min() and images.max() <= 1
    longer, whole = answers(nodes["LongtakeExtend"]().make(pipe, run, "a cat swims", 8, **more))
    assert longer.shape == (17, 32, 32, 3) and torch.equal(whole.latents[:3], run.latents)
    _, anew = answers(nodes["LongtakeRedo"]().make(pipe, whole, "a cat swims", 5, 9, **{**more, "seed": 2}))
    kept = (anew.latents - whole.latents).abs().amax((1, 2, 3)) == 0
    assert kept.tolist() == [True, True, False, True, True]
    with pytest.raises(UserError, match="has neither a video transformer nor"):
        nodes["LongtakeLoadPipeline"]().load("kaykit-small", "auto", object())


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_a_video_transformer_is_loaded_by_its_path(app, pack, tmp_path) -> None:
    from dit_pipelines import wan

    wan().save_pretrained(tmp_path / "wan")
    (pipe,) = pack.NODE_CLASS_MAPPINGS["LongtakeLoadPipeline"]().load(f" {tmp_path / 'wan'} ", "bfloat16")
    assert pipe.record.name == "WanTransformer3DModel" and pipe.stock.transformer.dtype == torch.bfloat16
    with pytest.raises(UserError, match="wam does not exist"):
        pack.NODE_CLASS_MAPPINGS["LongtakeLoadPipeline"]().load(str(tmp_path / "wam"), "auto")


def answers(made):
    """Images and run of a node's answer, whatever it shows beside them."""
    result = made["result"] if isinstance(made, dict) else made
    return result[0], next(part for part in result if hasattr(part, "latents"))


# ------------------------------------------------------------------------------------------------------ workflows


def inputs_of(pack, name):
    """Input -> what it takes, with whether it must be there and its settings."""
    if name in CORE:
        return {key: (kind, True, {}) for key, kind in CORE[name].items()}
    kinds = pack.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    return {
        key: (kind[0], part == "required", kind[1])
        for part in ("required", "optional")
        for key, kind in kinds.get(part, {}).items()
    }


def check_value(kind, value, more):
    if isinstance(kind, list):
        assert value in kind
    elif kind in ("INT", "FLOAT"):
        assert isinstance(value, int if kind == "INT" else int | float)
        assert more.get("min", value) <= value <= more.get("max", value)
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


def read(name):
    return json.loads((PACK / "workflows" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_for_the_api_fits_the_nodes(pack, name) -> None:
    graph = read(f"{name}_api")
    for node in graph.values():
        taken = inputs_of(pack, node["class_type"])
        assert set(node["inputs"]) <= set(taken)
        assert {key for key, (_, must, _) in taken.items() if must} <= set(node["inputs"])
        for key, value in node["inputs"].items():
            kind, _, more = taken[key]
            if isinstance(value, list):
                source = graph[value[0]]["class_type"]
                assert pack.NODE_CLASS_MAPPINGS[source].RETURN_TYPES[value[1]] == kind
            else:
                check_value(kind, value, more)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_for_the_page_is_the_same_graph(pack, name) -> None:
    """Links, slots and widgets, read as ComfyUI's page reads them, give the one for the API."""
    page, graph = read(name), read(f"{name}_api")
    assert page["version"] == 0.4
    assert page["last_node_id"] == max(n["id"] for n in page["nodes"])
    links = {link[0]: link for link in page["links"]}
    assert page["last_link_id"] == max(links)
    nodes = {node["id"]: node for node in page["nodes"]}
    for number, source, slot, target, place, kind in page["links"]:
        out = nodes[source]["outputs"][slot]
        assert number in out["links"] and out["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number and nodes[target]["inputs"][place]["type"] == kind
    read_back = {}
    for node in page["nodes"]:
        values, given = list(node["widgets_values"]), {}
        linked = {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        for key, (kind, _, more) in inputs_of(pack, node["type"]).items():
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                given[key] = values.pop(0)
                if more.get("control_after_generate"):
                    assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
            if key in linked:
                given[key] = [str(linked[key][1]), linked[key][2]]
        assert not values
        read_back[str(node["id"])] = (node["type"], given)
    assert read_back == {number: (node["class_type"], node["inputs"]) for number, node in graph.items()}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_runs(app, pack, pipeline, monkeypatch, name) -> None:
    """With fewer frames and steps, on the model that ships; nodes of ComfyUI itself take what they are given."""
    graph = read(f"{name}_api")
    small = {"frames": 8, "steps": 1, "guidance": 1.0, "start": 2, "stop": 5}
    done = {}

    def value(given):
        return result(given[0])[given[1]] if isinstance(given, list) else given

    def result(number):
        if number not in done:
            node = graph[number]
            given = {key: small.get(key, value(one)) for key, one in node["inputs"].items()}
            kind = pack.NODE_CLASS_MAPPINGS.get(node["class_type"])
            if node["class_type"] == "LongtakeLoadPipeline":
                made = (pipeline,)
            elif kind is None:
                assert given["images"].ndim == 4 and given["images"].shape[3] == 3
                made = ()
            else:
                if "text" in given:
                    given["text"] = "0s: a barbarian runs\n0.3s: a barbarian jumps"
                made = getattr(kind(), kind.FUNCTION)(**given)
            done[number] = made["result"] if isinstance(made, dict) else made
        return done[number]

    for number in graph:
        result(number)
    frames = {"extend_and_redo": 16, "generate_and_check": 8}[name]
    assert any(len(out) == 3 and len(out[0]) == frames for out in done.values())
