"""MotionPrior: what the long sampler asks of any net, so that another one drives it.

    class Mine:                                              # no base class is needed
        features, fps, text_features, train_steps, predicts = 263, 20.0, 512, 1000, "sample"
        mean, std = torch.zeros(263), torch.ones(263)

        def encode(self, prompts): ...                       # (P, 512)
        def __call__(self, x, timestep, text, lengths): ...  # (B, N, 263) -> (B, N, 263)

    pipe = LongMotionPipeline.from_net(Mine())
    pipe("0s: walks | 4s: waves", seed=1).save("take.glb")

Rows, handshakes, canvas, paths, controls, ranks and resume are then ours; the net sees one row of a few seconds at a
time. Its skeleton is that of its features: HumanML3D's 263, KIT's 251 or BABEL's 135 (``representation``).
Legend: B rows, N frames, J features, E text features, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from longtake.errors import UserError
from longtake.motion.model import Padding
from torch import nn

PREDICTS = ("sample", "epsilon", "v_prediction")


@runtime_checkable
class MotionPrior(Protocol):
    """A denoising net with what it was trained on.

    features: J. fps: frames a second. text_features: E, 0 for a net without text. train_steps: noise levels, 0 the
    cleanest, on the cosine schedule of MDM. predicts: "sample" (the clean motion), "epsilon" or "v_prediction". mean,
    std: (J,) of its features.
    """

    features: int
    fps: float
    text_features: int
    train_steps: int
    predicts: str
    mean: torch.Tensor
    std: torch.Tensor

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """(P, E) float32 text features; never called where a call brings them (``text=``)."""
        ...

    def __call__(
        self, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor | None, lengths: torch.Tensor | None
    ) -> torch.Tensor:
        """What it predicts (B, N, J) of noisy normalised rows x (B, N, J). timestep: (B,) int. text: (B, E), zeros or
        None for none. lengths: (B,) frames that count, None where all do; the others must not change them."""
        ...


class NetModel(nn.Module):
    """A ``MotionPrior`` as the pipeline's model; its tensors move with it where the net is an nn.Module."""

    padding = Padding.MASK
    alphas: torch.Tensor
    _where: torch.Tensor

    def __init__(self, net: MotionPrior, alphas: torch.Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("alphas", alphas.float(), persistent=False)
        self.register_buffer("_where", torch.zeros(1), persistent=False)  # tells device and number format
        self.config = _Config(features=int(net.features), transition_embedding=False)

    @property
    def device(self) -> torch.device:
        return self._where.device

    @property
    def dtype(self) -> torch.dtype:
        return self._where.dtype

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The clean motion (B, N, J). Raises UserError for an answer of another shape or with NaN."""
        found = self.net(sample, timestep, text, lengths)
        if found.shape != sample.shape or not bool(torch.isfinite(found).all()):
            raise UserError(
                f"the net answers {tuple(found.shape)} to rows {tuple(sample.shape)}: it must be finite numbers of "
                "the same shape"
            )
        if self.net.predicts == "sample":
            return found
        alpha = self.alphas[timestep.to(self.alphas.device)].to(sample).view(-1, 1, 1)
        if self.net.predicts == "epsilon":
            return (sample - (1 - alpha).sqrt() * found) / alpha.sqrt()
        return alpha.sqrt() * sample - (1 - alpha).sqrt() * found


class _Config(dict[str, Any]):
    """A configuration whose entries are attributes too, as diffusers has it."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class NetText:
    """The net's own ``encode`` as the pipeline's text encoder."""

    def __init__(self, net: MotionPrior) -> None:
        self.net = net

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """(P, 1, E) float32. Raises UserError for features of another shape."""
        found = torch.as_tensor(self.net.encode(list(prompts))).float()
        if found.shape != (len(prompts), self.net.text_features):
            raise UserError(
                f"the net's texts are ({len(prompts)}, {self.net.text_features}); encode gave {tuple(found.shape)}"
            )
        return found.unsqueeze(1)


def net_parts(net: MotionPrior) -> dict[str, Any]:
    """The components of a pipeline around a net. Raises UserError for what is no ``MotionPrior``."""
    from diffusers import DDPMScheduler
    from longtake.motion.representation import REPRESENTATIONS
    from longtake.motion.space import MotionSpace

    missing = [name for name in _asked() if not hasattr(net, name)]
    if missing or not callable(net):
        raise UserError(f"a MotionPrior has {', '.join(_asked())} and is called; this net lacks {', '.join(missing)}")
    if net.features not in REPRESENTATIONS:
        known = ", ".join(f"{width} ({form.name})" for width, form in REPRESENTATIONS.items())
        raise UserError(f"a net's features are {known}; given {net.features}")
    if net.predicts not in PREDICTS:
        raise UserError(f"predicts is one of {', '.join(PREDICTS)}; given {net.predicts!r}")
    if not (math.isfinite(net.fps) and net.fps > 0 and net.train_steps >= 1 and net.text_features >= 0):
        raise UserError(
            f"fps > 0, train_steps >= 1, text_features >= 0; given {net.fps}, {net.train_steps}, {net.text_features}"
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=int(net.train_steps),
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    try:
        space = MotionSpace(features=int(net.features), fps=float(net.fps)).set_statistics(net.mean, net.std)
    except ValueError as error:
        raise UserError(str(error)) from error
    model = NetModel(net, scheduler.alphas_cumprod)
    return {
        "model": model.eval(),
        "scheduler": scheduler,
        "space": space,
        "text_encoder": NetText(net) if net.text_features else None,
    }


def _asked() -> tuple[str, ...]:
    return ("features", "fps", "text_features", "train_steps", "predicts", "mean", "std", "encode")
