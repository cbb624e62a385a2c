"""Every recipe's step runs where the model is: a tensor left behind, or a wait for the device, is an error here.

The device is "meta": it holds no numbers, so that what reads one (`float(loss)`, `.cpu()`) raises, and a dispatch mode
raises when an operator is given tensors of two devices. Why "meta": fake CUDA tensors have no backward where
torch is built for CUDA and finds no driver. test_recipes_in_bfloat16.py runs the forward on those.
"""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import speech_codes
import torch
from longtake.train import Settings
from motion_data import write_motions
from speech_data import write_corpus
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from video_clips import write_clips

COPIES = {"aten::_to_copy", "aten::copy_", "aten::_has_compatible_shallow_copy_type"}


class OneDevice(TorchDispatchMode):
    """Raises when an operator mixes devices; copies from one to another are what they are for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name not in COPIES:
            places = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            assert len(places) < 2, f"{func._schema.name} was given tensors on {sorted(places)}"
        return func(*args, **kwargs)


class NothingSent(TorchFunctionMode):
    """Raises when numbers of the host are made a tensor elsewhere, or index one: each would wait for the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        made = name in ("new_tensor", "tensor", "as_tensor", "from_numpy")
        assert not made or isinstance(args[0], torch.Tensor) and name == "as_tensor", f"{name} sends to the device"
        if name in ("__getitem__", "__setitem__"):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(place, list) for place in places), "a list as an index is sent to the device"
        if name in ("to", "cuda"):
            assert args[0].device.type != "cpu", "a tensor of the host is sent to the device"
        return func(*args, **(kwargs or {}))


class Reached(Exception):
    """The recipe has come to its training."""


def one_step(monkeypatch, recipe, *, then=None):
    """Run a recipe up to `fit`, then one step of its loss, backward too, on the device without numbers; a second one
    inside ``then``, if given."""
    from longtake import train

    place, seen = torch.device("meta"), []
    monkeypatch.setattr(train, "training_device", lambda: place)
    monkeypatch.setattr(
        train, "normal", lambda rng, shape, device: torch.randn(tuple(shape), device=device)
    )  # a generator of its own has no such device

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # no such device either

    def catch(model, loss, settings, folder, **_):
        model.to(place)
        with OneDevice():
            value = loss(model, 0)
            value.backward()
        seen.append(value)
        if then is not None:
            with then:
                loss(model, 1)
        raise Reached

    monkeypatch.setattr(train, "fit", catch)
    with pytest.raises(Reached):
        recipe()
    assert seen[0].device == place and seen[0].ndim == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder / "emoji_train.zip")
    write_corpus(folder)
    return write_motions(folder)


def autoencoder(data, out):
    from longtake.video import train
    from longtake.video.corpus import Sources
    from longtake.video.data import load_clips

    train.train_autoencoder(Sources.of(load_clips(data), Words()), out, Settings(1), batch=2, seed=0)


def unet(data, out):
    from longtake.video import train
    from longtake.video.corpus import Sources
    from longtake.video.data import load_clips
    from longtake.video.prior import FrameAutoencoder

    net = FrameAutoencoder(train.LATENT_CHANNELS, (8, 8, 8))
    train.train_unet(Sources.of(load_clips(data), Words()), net, out, Settings(1), batch=1, seed=0)


def video_evaluator(data, out):
    from longtake.video import evaluator
    from longtake.video.data import load_clips

    evaluator.train(load_clips(data), out, evaluator.EvaluatorSettings(steps=1, batch=2, precision="no"))


class Words:
    """Stands for the text encoder."""

    def encode(self, texts):
        return torch.randn(len(texts), 16, 384, generator=torch.Generator().manual_seed(len(texts[0])))


def prepared(data):
    from longtake.motion.data import load_motions
    from longtake.motion.prepare import Prepared

    return Prepared.of(load_motions(data), load_motions(data, "val"), Words())


def mdm(data, out):
    from longtake.motion import train

    train.train_model(prepared(data), out, Settings(1), seed=0)


def motion_evaluator(data, out):
    from longtake.motion import evaluator
    from longtake.motion.data import load_motions

    clips = load_motions(data)
    actions = sorted({clip.action for clip in clips})
    evaluator.train(clips, actions, out, evaluator.EvaluatorSettings(1, 4), "toy")


def pair(data, out):
    from longtake.motion.pair import train
    from longtake.motion.pipeline import LongMotionPipeline

    train.train_block(LongMotionPipeline.from_prior("bandai-small"), prepared(data), out, Settings(1), seed=0)


def modulated_pair(data, out):
    """Around a prior of the recipe's own form."""
    from types import SimpleNamespace

    from longtake.motion.data import FPS
    from longtake.motion.model import MDM
    from longtake.motion.pair import train
    from longtake.motion.space import MotionSpace
    from longtake.motion.train import MODEL

    around = SimpleNamespace(model=MDM(**MODEL), space=MotionSpace(fps=FPS))
    train.train_block(around, prepared(data), out, Settings(1), seed=0)


def speech_codec(data, out):
    from longtake.speech.valle_r import train

    train.train_codec(speech_codes.flat(), None, out, Settings(1), rows=2, seed=0, mean=-5.5, deviation=2.1)


def first_codes(data, out):
    from longtake.speech.valle_r import train

    books = torch.randn(8, 1024, 64)
    train.train_ar(speech_codes.coded(), None, out, Settings(1), places=128, seed=0, books=books)


def other_codes(data, out):
    from longtake.speech.valle_r import train

    books = torch.randn(8, 1024, 64)
    train.train_nar(speech_codes.coded(), None, out, Settings(1), places=128, seed=0, books=books)


VALLE_R = [speech_codec, first_codes, other_codes]


def corpora(data):
    from longtake import train
    from longtake.speech.data import Corpus, load_corpora, prepared

    source, place = prepared(load_corpora(data)), train.training_device()
    return Corpus.of(source, "train", place), Corpus.of(source, "val", place)


def prosody(data, out):
    from longtake.speech.prosody_fm import train

    seen, unseen = corpora(data)
    config = train.config_for(seen, layers=1, channels=32, inner=32, field=(32, 32), speaker_width=32)
    train.train_model(seen, unseen, out, Settings(1), batch=3, frames=32, limits=(16,), seed=0, config=config)


def vocoder(data, out):
    from longtake.speech import distil
    from longtake.speech.vocoder import Config, Vocoder

    teacher = Vocoder(Config(channels=32)).requires_grad_(False)
    student = Vocoder(Config(channels=32, hidden=tuple(max(8 >> stage, 1) for stage in range(4) for _ in range(9))))
    distil.train_vocoder(*corpora(data), teacher, student, out, Settings(1), batch=2, seed=0)


def watch_head(data, out):
    from longtake.video.watch import train

    dice = np.random.default_rng(0)
    films = train.Films(
        dice.standard_normal((6, train.PICTURES, train.WIDTH)).astype(np.float16), np.arange(6) % 4,
        dice.integers(0, 5, (6, 3)), dice.standard_normal((5, 384)).astype(np.float32), np.arange(6) > 4,
        [str(n) for n in range(4)], ["emoji"] * 6,
    )  # fmt: skip
    train.train_head(films, out, Settings(1), seed=0, batch=3)


def longitudinal(data, out):
    from longtake.medical import train
    from longtake.medical.corpus import simulated
    from longtake.medical.net import LongitudinalNet

    net = LongitudinalNet(width=32, channels=(16, 32), mean_channels=(16, 32), condition=32)
    rows = {"simulated-8": 2}
    people = simulated(1, 0, ((2, 16, 16),))
    train.train_model(net, people, people, out, Settings(1), rows=rows)


SPEECH = [prosody, vocoder, *VALLE_R]
OTHERS = [longitudinal, *SPEECH, watch_head]
RECIPES = [autoencoder, unet, video_evaluator, mdm, motion_evaluator, pair, modulated_pair, *OTHERS]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_step_stays_on_the_device_and_does_not_wait_for_it(recipe, data, tmp_path, monkeypatch):
    one_step(monkeypatch, lambda: recipe(data, tmp_path))


@pytest.mark.parametrize("recipe", [mdm, pair, modulated_pair, *OTHERS], ids=lambda recipe: recipe.__name__)
def test_a_recorded_step_sends_nothing_to_the_device(recipe, data, tmp_path, monkeypatch):
    one_step(monkeypatch, lambda: recipe(data, tmp_path), then=NothingSent())


def test_what_a_step_sends_is_noticed(monkeypatch):
    from longtake import train

    for sends in (
        lambda x: x * x.new_tensor([1.0]),
        lambda x: x[:, [0, 1]],
        lambda x: x * torch.tensor(2.0, device="meta"),
        lambda x: x * torch.ones(3).to("meta"),
    ):

        def loss(network, step, sends=sends):
            return sends(network(torch.ones(2, 3, device="meta"))).mean()

        with pytest.raises(AssertionError, match="to the device"):
            one_step(monkeypatch, lambda: train.fit(torch.nn.Linear(3, 3), loss, None, None), then=NothingSent())


def test_a_tensor_left_behind_and_a_wait_are_noticed(monkeypatch):
    net = torch.nn.Linear(3, 1)

    def left(network, step):
        return (network(torch.ones(2, 3, device="meta")) * torch.ones(2, 1)).mean()

    def waits(network, step):
        loss = network(torch.ones(2, 3, device="meta")).mean()
        return loss / float(loss.detach())

    from longtake import train

    with pytest.raises(AssertionError, match="on \\['cpu', 'meta'\\]"):
        one_step(monkeypatch, lambda: train.fit(net, left, None, None))
    with pytest.raises(RuntimeError, match="meta"):
        one_step(monkeypatch, lambda: train.fit(net, waits, None, None))


def test_a_planted_fault_in_a_recipe_is_noticed(data, tmp_path, monkeypatch):
    from longtake.motion.corpus import Corpus

    def half(corpus, device):
        return replace(corpus, features=corpus.features.to(device))

    monkeypatch.setattr(Corpus, "to", half)
    with pytest.raises(AssertionError, match="on \\['cpu', 'meta'\\]"):
        one_step(monkeypatch, lambda: mdm(data, tmp_path))
