"""How a class is admitted (D3), what memory it takes (D4), and what it gets along with (D10)."""

import warnings

import pytest
import torch
from dit_models import FRAME_AXIS, KINDS, call_of, make, run
from live_bytes import peak_bytes
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport
from longtake.video.dit.locality import check_local
from longtake.video.dit.records import Clock, Record, Text
from longtake.video.parallelize import UnsupportedModule, parallelize
from longtake.video.scope import Scope
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.filterwarnings("ignore")
NARROW = Scope(window=1, global_frames=2, gate="off")


@pytest.mark.parametrize("kind", KINDS)
def test_d3_frames_meet_in_attention_only(kind):
    warnings.simplefilter("ignore")
    frames = 6
    assert check_local(make(kind), call_of(kind, frames), frames) == {}


def test_d3_a_class_whose_frames_meet_elsewhere_is_refused():
    import diffusers

    latte = diffusers.LatteTransformer3DModel(
        num_layers=1, num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=4,
        cross_attention_dim=16, caption_channels=16,
    )  # fmt: skip
    with pytest.raises(UnsupportedModule, match="LatteTransformer3DModel has no record"):
        parallelize(latte, Partition.even(4, 1), NARROW)
    from video_models import fill_parameters, noise

    sana = fill_parameters(
        diffusers.SanaVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=16,
            sample_size=4, patch_size=(1, 2, 2),
        )
    )  # fmt: skip
    given = {
        "hidden_states": noise("latents", 1, 4, 6, 4, 4), "encoder_hidden_states": noise("text", 1, 5, 16),
        "timestep": torch.tensor([500]),
    }  # fmt: skip
    record = Record(
        "SanaVideoTransformer3DModel", Text.CROSS, Clock.TABLE, ("transformer_blocks",), "attn1", {"hidden_states": 2},
        length=21, stride=4, fps=16.0, cross="attn2",
    )  # fmt: skip
    with pytest.raises(UnsupportedModule, match="does not call torch's attention"):
        check_local(sana, given, 6, record)


def test_d3_a_leak_is_found():
    """Wan with a convolution over frames in a block: what a class with temporal convolutions does."""
    model = make("wan")
    over_time = torch.nn.Conv1d(24, 24, 3, padding=1)

    def mix(_module, _args, out):
        frames = out.unflatten(1, (6, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        return over_time(frames).unflatten(0, (2, -1)).permute(0, 3, 1, 2).flatten(1, 2)

    model.blocks[0].ffn.register_forward_hook(mix)
    leaks = check_local(model, call_of("wan", 6), 6)
    assert leaks[0] == (1,) and leaks[3] == (2, 4) and leaks[5] == (4,)


@pytest.mark.parametrize("kind", ["wan", "skyreels-causal", "hunyuan", "hunyuan15", "ltx", "cogvideox", "kandinsky"])
def test_d4_memory_grows_with_the_frames_and_no_mask_of_tokens_by_tokens_is_made(kind):
    model = make(kind)
    peaks = []
    for frames in (24, 48):
        given = call_of(kind, frames, batch=1, rows=8, columns=8)
        with parallelize(model, Partition.even(frames, 1), NARROW, whole=True):
            peaks.append(peak_bytes(lambda given=given: run(model, given)))
    assert peaks[1] <= 2.2 * peaks[0], peaks


@pytest.mark.parametrize("kind", ["wan", "hunyuan", "ltx"])
def test_traffic_of_a_rank_does_not_grow_with_the_video_and_is_what_a_dry_run_says(kind):
    """Window 1 and first frames 2: a middle rank asks for two neighbours and two anchors in each block."""
    from longtake.video.dit.scopes import Sinks

    received = []
    for frames in (12, 24):
        model, given = make(kind), call_of(kind, frames, batch=1)
        part = frames // 3
        cut = given if kind == "ltx" else {**given, "hidden_states": given["hidden_states"][:, :, part : 2 * part]}
        if kind == "ltx":
            cut = {**given, "hidden_states": given["hidden_states"][:, 16 * part : 32 * part], "num_frames": part}
        with parallelize(model, Partition.even(frames, 3), Sinks(1, 2), transport=DryTransport(1, 3)) as handle:
            run(model, cut)
            received.append(handle.counter.received["frames"])
    tokens, width = (16, 32) if kind == "ltx" else (4, 24)
    assert received == [2 * 4 * tokens * width * 2 * 4] * 2  # 2 layers, 4 frames, K and V, 4 bytes


class Counted(TorchDispatchMode):
    """Operators and bytes of their results."""

    def __init__(self):
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        self.bytes += sum(x.nbytes for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "skyreels-causal"])  # a scope of its own is on
def test_one_rank_with_all_frames_in_scope_costs_what_stock_costs(kind):
    """With 12 layers in place of a tiny model's 2, so that what is done once a call weighs what it does in public."""
    layers = {"hunyuan": "num_single_layers", "hunyuan-i2v": "num_single_layers", "kandinsky": "num_visual_blocks"}
    model, given = make(kind, **{layers.get(kind, "num_layers"): 12}), call_of(kind, 6, rows=8, columns=8)

    def count():
        with Counted() as counted, torch.no_grad():
            model(**given)
        return counted

    stock = count()
    with parallelize(model, Partition.even(6, 1), Scope(6, 0, gate="off"), whole=True):
        ours = count()
    assert ours.calls <= 1.05 * stock.calls and ours.bytes <= 1.05 * stock.bytes, (ours.calls, stock.calls)
    if kind == "hunyuan15":  # stock builds a mask of tokens by tokens in every block
        assert ours.bytes < 0.8 * stock.bytes, (ours.bytes, stock.bytes)


def same(kind, prepare, tolerance=1e-5):
    """A scope's output with a change to the model equals the changed model's under the same scope, installed after."""
    model, given = make(kind), call_of(kind, 6)
    undo = prepare(model)
    with parallelize(model, Partition.even(6, 1), Scope(6, 0, gate="off"), whole=True):
        shown = run(model, given)
    stock = run(model, given)
    assert (shown - stock).abs().max() <= tolerance
    with parallelize(model, Partition.even(6, 1), NARROW, whole=True):
        narrow = run(model, given)
    assert (narrow - stock).abs().max() > 1e-3
    if undo is not None:
        undo()
    return stock


@pytest.mark.parametrize("kind", ["wan", "hunyuan", "cogvideox"])
def test_d10_lora_by_peft(kind):
    pytest.importorskip("peft")
    from peft import LoraConfig

    def prepare(model):
        torch.manual_seed(3)
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))

    assert (same(kind, prepare) - run(make(kind), call_of(kind, 6))).abs().max() > 1e-4


def test_d10_group_offload():
    def prepare(model):
        model.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )

    same("wan", prepare)


def test_d10_first_block_cache_is_used_and_gives_the_same_numbers():
    from diffusers import FirstBlockCacheConfig

    model, given = make("wan", num_layers=4), call_of("wan", 6)
    model.enable_cache(
        FirstBlockCacheConfig(threshold=1e9)
    )  # after the first step every block but the first is skipped
    other = {**given, "hidden_states": given["hidden_states"] * 1.01}

    def two_steps():
        with model.cache_context("cond"):
            run(model, given)
            second = run(model, other)
        model._reset_stateful_cache()
        return second

    stock = two_steps()
    with parallelize(model, Partition.even(6, 1), Scope(6, 0, gate="off"), whole=True) as handle:
        assert (two_steps() - stock).abs().max() <= 1e-5
        assert handle._call.asked["blocks.0.attn1"] == 2 and handle._call.asked["blocks.2.attn1"] == 1


def test_d10_quantised_linear_layers():
    class Int8(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            self.weight8 = (linear.weight.detach() / self.scale).round().to(torch.int8)
            self.bias = linear.bias

        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight8.float() * self.scale, self.bias)

    def prepare(model):
        for block in model.blocks:
            for name in ("to_q", "to_k", "to_v"):
                setattr(block.attn1, name, Int8(getattr(block.attn1, name)))

    same("wan", prepare)


def test_d10_a_compiled_block_gives_the_same_numbers_or_is_run_as_it_is():
    def prepare(model):
        for block in model.blocks:
            block.compile(backend="eager")

    same("wan", prepare)


def test_refusals_name_what_was_wrong():
    model = make("wan")
    with pytest.raises(UserError, match="chunk_frames is for UNets"):
        parallelize(model, Partition.even(6, 1), NARROW, chunk_frames=2)
    with parallelize(model, Partition.even(6, 1), NARROW, whole=True) as handle:
        with pytest.raises(UserError, match="whole inputs have 5 frames, the video has 6"):
            run(model, call_of("wan", 5))
        with pytest.raises(UserError, match="must add up to 1"):
            handle.set_prompts(torch.full((6, 2), 0.3), 5)
        with pytest.raises(UserError, match=r"prompts need weights \(frames, prompts\) >= 0 over 6 frames"):
            handle.set_prompts(torch.ones(5, 1), 5)
    assert FRAME_AXIS["ltx"] == 1
