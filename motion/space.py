"""The space a motion prior works in: which representation, at what frame rate, with which mean, deviation and skeleton.

A pipeline component: its configuration and numbers are saved beside the net.

    space = MotionSpace(features=263, fps=20.0).fit(clips)       # mean and std of (F, 263) clips
    joints = space.joints(normalised)                            # (*, N, 22, 3) metres

Legend: N frames, J features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from longtake.errors import UserError
from longtake.motion.representation import Normalizer, representation_of

SHORTEST_ROW, LONGEST_ROW = 40, 196  # frames of HumanML3D's clips
CLIP_CONTEXT = 22  # tokens of a text, start and end included, that the public nets were trained on


class MotionSpace(ModelMixin, ConfigMixin):
    """Mean, deviation and rest skeleton of a motion prior's features.

    features: 263, 251 or 135. fps: of the motion. shortest_row, longest_row: frames the prior was trained on.
    clip_context: tokens that a CLIP text is cut to before it is padded with zeros to 77.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        features: int = 263,
        fps: float = 20.0,
        shortest_row: int = SHORTEST_ROW,
        longest_row: int = LONGEST_ROW,
        clip_context: int = CLIP_CONTEXT,
    ) -> None:
        super().__init__()
        self.form = representation_of(features)
        self.mean = torch.nn.Parameter(torch.zeros(features), requires_grad=False)
        self.std = torch.nn.Parameter(torch.ones(features), requires_grad=False)
        self.offsets = torch.nn.Parameter(torch.zeros(self.form.joints, 3), requires_grad=False)

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(self.mean.data.float(), self.std.data.float())

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor, offsets: torch.Tensor | None = None) -> MotionSpace:
        """Take mean and std (J,), and rest offsets (22, 3), metres. ValueError for other shapes or std <= 0."""
        if mean.shape != self.mean.shape or std.shape != self.std.shape or not bool((std > 0).all()):
            raise ValueError(
                f"mean and std must be ({len(self.mean)},) with std > 0; given {tuple(mean.shape)}, {tuple(std.shape)}"
            )
        self.mean.data.copy_(mean)
        self.std.data.copy_(std)
        if offsets is not None:
            self.offsets.data.copy_(offsets)
        return self

    def fit(
        self, clips: Sequence[torch.Tensor], offsets: torch.Tensor | None = None, *, apart: Sequence[str] = ()
    ) -> MotionSpace:
        """Mean and deviation of clips (F, J), the deviation averaged over each part of the features, as the public
        statistics are; rest offsets if given. apart: parts whose numbers keep a deviation each."""
        frames = torch.cat([clip.double() for clip in clips])
        mean, std = frames.mean(0), frames.std(0, correction=0)
        parts = self.form.slices
        for name, place in parts.items():
            if name in self.form.alike and name not in apart:
                std[place] = std[place].mean()
        return self.set_statistics(mean.float(), std.clamp_min(1e-6).float(), offsets)

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        return self.normalizer.normalize(features)

    def denormalize(self, features: torch.Tensor) -> torch.Tensor:
        return self.normalizer.denormalize(features)

    def joints(self, normalised: torch.Tensor) -> torch.Tensor:
        """Joint positions (*, N, joints, 3) in metres of normalised features (*, N, J)."""
        return self.form.recover(self.denormalize(normalised.float()), self.offsets)

    @classmethod
    def from_numpy(cls, mean: str | Path, std: str | Path, **config: float) -> MotionSpace:
        """From the public Mean.npy and Std.npy (no pickles)."""
        import numpy as np

        try:
            arrays = [np.load(path, allow_pickle=False) for path in (mean, std)]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the statistics {mean} and {std}: {error}") from error
        values = [torch.from_numpy(array).float() for array in arrays]
        return cls(features=len(values[0]), **config).set_statistics(values[0], values[1])  # type: ignore[arg-type]
