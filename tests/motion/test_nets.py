"""Another net drives the sampler: what a MotionPrior says is enough, and what it must not say is refused."""

import pytest
import torch
from longtake import LongMotionPipeline
from longtake.errors import UserError
from longtake.motion.model import Padding
from longtake.motion.nets import MotionPrior
from motion_models import tiny_net

CALL = {"frames": 100, "seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}
PROMPT = "0: walks | 50: waves"


class Foreign:
    """A net of somebody else: no class of ours, no configuration, its own texts."""

    def __init__(self, predicts: str = "sample", **more) -> None:
        self.features, self.fps, self.text_features, self.train_steps = 263, 20.0, 8, 50
        self.mean, self.std, self.predicts = torch.zeros(263), torch.full((263,), 0.1), predicts
        self.inner = tiny_net(features=263, padding=Padding.MASK)
        for name, value in more.items():
            setattr(self, name, value)

    def encode(self, prompts):
        generator = torch.Generator()
        rows = [torch.randn(8, generator=generator.manual_seed(sum(map(ord, text)))) for text in prompts]
        return torch.stack(rows)

    def __call__(self, x, timestep, text, lengths):
        clean = self.inner(x, timestep, text, lengths=lengths)
        if self.predicts == "sample":
            return clean
        alpha = self.alphas[timestep].view(-1, 1, 1)
        if self.predicts == "epsilon":
            return (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return (alpha.sqrt() * x - clean) / (1 - alpha).sqrt()


def quiet(pipe: LongMotionPipeline) -> LongMotionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_n1_a_foreign_net_gives_the_bits_that_the_same_net_inside_gives() -> None:
    net = Foreign()
    assert isinstance(net, MotionPrior)
    outer = quiet(LongMotionPipeline.from_net(net))
    own = quiet(LongMotionPipeline(net.inner, outer.scheduler, outer.space, outer.text_encoder))
    one, two = outer(PROMPT, **CALL), own(PROMPT, **CALL)
    assert torch.equal(torch.as_tensor(one.joints), torch.as_tensor(two.joints))
    assert one.joints.shape == (100, 22, 3) and one.captions[60] == "waves"


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_n1_nets_that_predict_noise_or_velocity_give_the_same_motion(predicts: str) -> None:
    want = quiet(LongMotionPipeline.from_net(Foreign()))(PROMPT, **CALL, output_type="latent").features
    net = Foreign(predicts)
    pipe = quiet(LongMotionPipeline.from_net(net))
    net.alphas = pipe.scheduler.alphas_cumprod
    got = pipe(PROMPT, **CALL, output_type="latent").features
    assert float((got - want).abs().max()) < 5e-3 * float(want.abs().max())


def test_n1_vectors_go_in_where_a_net_has_no_words() -> None:
    net = Foreign(text_features=0)
    pipe = quiet(LongMotionPipeline.from_net(net))
    with pytest.raises(UserError, match="no text encoder"):
        pipe(PROMPT, **CALL)
    given = net.encode(["walks", "waves"])
    want = quiet(LongMotionPipeline.from_net(Foreign()))(PROMPT, **CALL)
    assert torch.equal(torch.as_tensor(pipe(PROMPT, **CALL, text=given).joints), torch.as_tensor(want.joints))


@pytest.mark.parametrize(
    "more,said",
    [
        ({"features": 272}, "263 .HumanML3D-263.*given 272"),
        ({"predicts": "score"}, "predicts is one of sample, epsilon, v_prediction; given 'score'"),
        ({"fps": 0.0}, "fps > 0"),
        ({"std": torch.zeros(263)}, "std > 0"),
    ],
)
def test_n1_what_is_no_prior_is_refused_by_name(more, said: str) -> None:
    with pytest.raises(UserError, match=said):
        LongMotionPipeline.from_net(Foreign(**more))


def test_n1_a_net_with_a_wrong_answer_is_told_so() -> None:
    class Short(Foreign):
        def __call__(self, x, timestep, text, lengths):
            return x[:, :-1]

    with pytest.raises(UserError, match="must be finite numbers of the same shape"):
        quiet(LongMotionPipeline.from_net(Short()))(PROMPT, **CALL)
    with pytest.raises(UserError, match="lacks features, fps"):
        LongMotionPipeline.from_net(object())
