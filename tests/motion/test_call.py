"""The call as diffusers' users know it: names, generators, callbacks, batches, what is returned, what is refused."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.motion.outputs import MotionOutput
from longtake.motion.pipeline import LongMotionPipeline

FEW = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe() -> LongMotionPipeline:
    made = LongMotionPipeline.from_pretrained("bandai-small", torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def test_defaults_are_those_of_the_command() -> None:
    known = inspect.signature(LongMotionPipeline.__call__).parameters
    assert known["num_inference_steps"].default == 30 and known["chunk_rows"].default == 16
    assert known["guidance_scale"].default == 1.25 and known["handshake"].default == 20


def test_u6_a_shipped_prior_is_loaded_by_its_name(pipe) -> None:
    same = LongMotionPipeline.from_prior("bandai-small")
    same.set_progress_bar_config(disable=True)
    assert np.array_equal(same("walks", 40, **FEW).features, pipe("walks", 40, **FEW).features)
    half = LongMotionPipeline.from_pretrained("bandai-small", torch_dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16


def test_u6_lengths_and_seeds_by_any_of_their_names(pipe) -> None:
    want = pipe("walks", 50, seed=9, **FEW).features
    generator = torch.Generator().manual_seed(9)
    for given in (
        {"num_frames": 50, "seed": 9},
        {"seconds": 2.5, "generator": generator},
        {"frames": 50, "generator": [generator]},
    ):
        assert np.array_equal(pipe("walks", **given, **FEW).features, want), given
    for given, message in (
        ({"frames": 50, "num_frames": 50}, "frames and num_frames"),
        ({"seconds": 2.0, "num_frames": 50}, "num_frames and seconds"),
        ({"seed": 1, "generator": generator}, "seed and generator"),
        ({"frames": 1}, "at least 2"),
        ({"frames": 10**20}, "at most"),
        ({"seconds": float("inf")}, "finite"),
        ({"frames": True}, "whole number"),
        ({"seed": 2**64}, "2\\*\\*64 - 1"),
        ({"seed": -1}, "from 0"),
    ):
        with pytest.raises(UserError, match=message):
            pipe("walks", **given, **FEW)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": -3}, "num_inference_steps must be at least 1"),
        ({"num_inference_steps": 1001}, "1000 at most"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"guidance_scale": 1e308}, "NaN or infinity"),
        ({"output_type": "pil"}, "output.preview"),
        ({"negative_prompt": "sad"}, "negative_prompt"),
        ({"most_jerk": 0.0}, "most_jerk"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds"),
        ({"people": 2, "take2": "paper"}, "take2"),
        ({"prompt": None}, "list of texts; given NoneType"),
        ({"prompt": 5}, "given int"),
        ({"prompt": ""}, "empty"),
    ],
)
def test_b12_u8_what_cannot_be_honoured_is_one_line(pipe, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        pipe(**{"prompt": "walks", "frames": 40, **FEW, **given})
    assert "\n" not in str(told.value)


def test_b14_no_negative_prompt_is_none(pipe) -> None:
    assert pipe("walks", 40, negative_prompt=None, **FEW).info["completed"]


def test_u6_output_types(pipe) -> None:
    usual = pipe("walks", 40, **FEW)
    tensors = pipe("walks", 40, output_type="pt", **FEW)
    assert isinstance(tensors.joints, torch.Tensor) and np.array_equal(tensors.joints.numpy(), usual.joints)
    latent = pipe("walks", 40, output_type="latent", **FEW)
    assert torch.equal(pipe.space.denormalize(latent.features), torch.from_numpy(usual.features))
    assert latent.joints.shape == (40, 0, 3)
    (joints,) = pipe("walks", 40, return_dict=False, **FEW)
    assert np.array_equal(joints, usual.joints)
    (features,) = pipe("walks", 40, return_dict=False, output_type="latent", **FEW)
    assert torch.equal(features, latent.features)
    first, second = pipe.pair("two people bow to each other", 40, return_dict=False, **FEW)
    assert first.shape == second.shape == (40, 22, 3)


def test_u6_tensors_are_saved_as_arrays_are(pipe, tmp_path) -> None:
    usual, tensors = (pipe("walks", 40, output_type=kind, **FEW) for kind in ("np", "pt"))
    for suffix in (".npz", ".bvh", ".csv"):
        one, two = (out.save(tmp_path / f"{name}{suffix}") for name, out in (("np", usual), ("pt", tensors)))
        assert one.stat().st_size == two.stat().st_size
    assert tensors.seams().frames == 40 and tensors.lock_feet().frames == 40


def test_u8_a_list_of_prompts_is_a_batch_with_seeds_that_count_up(pipe) -> None:
    prompts = ["walks", "0s: waves | 1s: runs"]
    outs = pipe(prompts, 60, seed=4, **FEW)
    for number, (prompt, out) in enumerate(zip(prompts, outs, strict=True)):
        assert isinstance(out, MotionOutput)
        assert np.array_equal(out.features, pipe(prompt, 60, seed=4 + number, **FEW).features)
    generators = [torch.Generator().manual_seed(seed) for seed in (8, 3)]
    outs = pipe(prompts, 60, generator=generators, **FEW)
    assert [out.info["seed"] for out in outs] == [8, 3]
    wrong = ({"generator": generators[:1]}, "as many generators"), ({"journal": Journal("x")}, "journal")
    for given, message in wrong:
        with pytest.raises(UserError, match=message):
            pipe(prompts, 60, **given, **FEW)
    assert pipe([], 60, **FEW) == []


def test_u6_u7_b10_callbacks(pipe) -> None:
    seen: list[int] = []

    def zeros(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        assert list(tensors) == ["latents"]
        return {"latents": torch.zeros_like(tensors["latents"])}

    given = {"num_inference_steps": 3, "most_jerk": None}
    out = pipe("walks", 40, callback_on_step_end=zeros, callback_on_step_end_tensor_inputs=["latents"], **given)
    assert seen == [0, 1, 2]
    nothing = pipe.space.denormalize(torch.zeros(40, 263)).numpy()
    assert np.allclose(out.features, nothing), "what is given back is what the run goes on with"

    def interrupts(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            pipeline._interrupt = True
        return tensors

    for people in (1, 2):
        out = pipe("walks", 40, num_inference_steps=9, people=people, callback_on_step_end=interrupts)
        assert out.info["steps"] == 2 and not out.info["completed"] and np.isfinite(out.joints).all()
    outs = pipe(["walks", "runs"], 40, num_inference_steps=9, callback_on_step_end=interrupts)
    assert len(outs) == 1, "a stopped batch begins no further motion"
    assert pipe("walks", 40, **FEW).info["completed"], "the next call is not stopped"


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_b3_equal_calls_give_equal_motions_with_any_scheduler(name: str) -> None:
    import diffusers

    made = LongMotionPipeline.from_pretrained("bandai-small")
    made.set_progress_bar_config(disable=True)
    config = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"}
    made.scheduler = getattr(diffusers, name)(num_train_timesteps=1000, **config)
    one, two = (made("walks", 40, num_inference_steps=5).features for _ in range(2))
    assert np.array_equal(one, two) and np.isfinite(one).all()
    made.scheduler = diffusers.EulerAncestralDiscreteScheduler(num_train_timesteps=1000, **config)
    with pytest.raises(UserError, match="EulerAncestralDiscreteScheduler does not fit"):
        made("walks", 40, num_inference_steps=5)


def test_rows_mode_goes_on_from_its_journal(tmp_path) -> None:
    made = LongMotionPipeline.from_pretrained("bandai-small")
    made.set_progress_bar_config(disable=True)
    given = {"frames": 120, "mode": "rows", "num_inference_steps": 4, "seed": 3, "chunk_rows": 1}
    whole = made("0s: walks | 3s: runs", **given)

    def stop(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> None:
        if index == 1:
            pipeline.stop()

    with Journal(tmp_path) as journal:
        journal.open({})
        early = made("0s: walks | 3s: runs", journal=journal, callback_on_step_end=stop, **given)
        assert early.info["steps"] == 2 and np.isfinite(early.joints).all()
        rest = made("0s: walks | 3s: runs", journal=journal, **given)
    assert np.array_equal(rest.features, whole.features) and np.array_equal(rest.joints, whole.joints)


def test_a_folder_that_is_not_there_is_one_line_with_a_network_and_without(monkeypatch) -> None:
    with pytest.raises(UserError, match="there is no folder models/wam here, and no motion prior of that name"):
        LongMotionPipeline.from_pretrained("models/wam")
    monkeypatch.delenv("HF_HUB_OFFLINE")  # diffusers' own client stays offline: it read that when it was imported
    with pytest.raises(UserError, match="there is no folder models/wam here, and the Hub does not give it"):
        LongMotionPipeline.from_pretrained("models/wam")
