"""The pipeline takes what diffusers' text-to-video pipelines take, or refuses it by name."""

import numpy as np
import pytest
import torch
from longtake import LongVideoPipeline, Timeline, UserError
from video_prior import tiny_pipe

SHORT = {"num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def pipe():
    made = tiny_pipe()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def latents(pipe):
    return pipe("a dog", 10, output_type="latent", **SHORT).latents


def test_the_same_video_by_diffusers_names(pipe, latents) -> None:
    generator = torch.Generator().manual_seed(3)
    for call in (
        {"num_frames": 10, "seed": 3},
        {"seconds": 10 / 12, "seed": 3},
        {"num_frames": 10, "generator": generator},
        {"num_frames": 10, "generator": [generator], "negative_prompt": None},
    ):
        made = pipe("a dog", num_inference_steps=2, output_type="latent", **call).latents
        assert torch.equal(made, latents)
    text = pipe.encode_prompts(["a dog"])
    assert torch.equal(pipe(prompt_embeds=text, num_frames=10, output_type="latent", **SHORT).latents, latents)


def test_frames_have_the_shapes_of_diffusers(pipe, latents) -> None:
    film = pipe("a dog", 10, **SHORT).frames
    assert film.dtype == np.uint8 and film.shape == (10, 64, 64, 3)
    array = pipe("a dog", 10, output_type="np", **SHORT).frames
    assert array.shape == (1, 10, 64, 64, 3) and array.dtype == np.float32
    assert np.array_equal((array[0] * 255).round().astype(np.uint8), film)
    tensor = pipe("a dog", 10, output_type="pt", **SHORT).frames
    assert tensor.shape == (1, 10, 3, 64, 64) and float(tensor.max()) <= 1
    made = pipe("a dog", 10, output_type="pil", **SHORT)
    assert np.array_equal(np.asarray(made.frames[0][4]), film[4]) and made[0] is made.frames
    (frames,) = pipe("a dog", 10, output_type="pil", return_dict=False, **SHORT)
    assert len(frames[0]) == 10 and torch.equal(made.outputs[0].latents, latents)


def test_a_list_of_prompts_is_a_batch_with_a_seed_each(pipe, latents) -> None:
    both = pipe(["a dog", "a cat"], 10, output_type="latent", **SHORT)
    alone = pipe("a cat", 10, output_type="latent", num_inference_steps=2, seed=4).latents
    assert torch.equal(both[0].latents, latents) and torch.equal(both[1].latents, alone)
    assert pipe(["a dog", "a cat"], 10, output_type="pt", **SHORT).frames.shape == (2, 10, 3, 64, 64)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    again = pipe(["a dog", "a cat"], 10, output_type="latent", num_inference_steps=2, generator=generators)
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(both, again, strict=True))


def test_a_timeline_may_be_text_on_this_door_too(pipe) -> None:
    text = "0s: a dog | 0.5s: a cat"
    one = pipe(text, 12, output_type="latent", **SHORT).latents
    other = pipe(Timeline.parse(text, fps=12), 12, output_type="latent", **SHORT).latents
    plain = pipe("a dog", 12, output_type="latent", **SHORT).latents
    assert torch.equal(one, other) and not torch.equal(one, plain)


def test_a_callback_counts_from_0_may_change_the_latents_and_stops_by_interrupt(pipe) -> None:
    seen = []

    def zeros(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    made = pipe(
        "a dog", 10, num_inference_steps=2, callback_on_step_end=zeros,
        callback_on_step_end_tensor_inputs=["latents"], output_type="latent",
    )  # fmt: skip
    assert seen == [(0, ["latents"]), (1, ["latents"])] and not made.latents.any()

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return {}

    made = pipe("a dog", 10, num_inference_steps=6, callback_on_step_end=interrupt, output_type="latent")
    assert made.info["steps"] == 2 and not made.info["completed"]


def test_a_stop_that_comes_while_texts_are_encoded_counts(pipe, monkeypatch) -> None:
    stock = type(pipe).encode_prompts

    def encode(self, prompts):
        self.stop()
        return stock(self, prompts)

    monkeypatch.setattr(type(pipe), "encode_prompts", encode)
    assert pipe("a dog", 10, num_inference_steps=6, output_type="latent").info["steps"] == 1


def test_a_shipped_prior_has_a_name_here_too() -> None:
    pipe = LongVideoPipeline.from_pretrained("kaykit-small", torch_dtype=torch.float32)
    assert pipe.unet.dtype == torch.float32 and pipe.text_encoder is not None


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ({}, "prompt"), ({"prompt": ""}, "no prompt"), ({"prompt": 5}, "text or a Timeline"), ({"prompt": []}, "empty"),
        ({"frames": 9, "num_frames": 9}, "one of them"), ({"frames": 0}, "at least 1"), ({"frames": 2.5}, "whole"),
        ({"seed": 1, "generator": torch.Generator()}, "one of them"), ({"generator": 5}, "torch.Generator"),
        ({"seed": -1}, "seed"), ({"num_inference_steps": 0}, "at least 1"), ({"num_inference_steps": True}, "at least"),
        ({"output_type": "gif"}, "film, stream"), ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
        ({"prompt_embeds": torch.zeros(1, 4, 7)}, "(1, T,"), ({"prompt": ["a", "b"], "generator": [1]}, "2 prompts"),
        ({"seconds": float("inf")}, "seconds"), ({"prompt": "0s: a | 1s: b", "prompt_embeds": "x"}, "(1, T,"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_by_name(pipe, call: dict, word: str) -> None:
    base = {} if set(call) == set() else {"prompt": "a dog"}
    with pytest.raises(UserError) as caught:
        pipe(**{**base, **call})
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_offload_is_refused_by_name(pipe) -> None:
    for ask in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        with pytest.raises(UserError, match="offload is not known here.*pipe.to"):
            ask()
