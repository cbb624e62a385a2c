"""ComMDM: two people from one frozen prior and a small block through which they see each other (PriorMDM, section 5).

The first frame of each motion is a canon token: its first four numbers say how the second person stands to the first
(yaw and floor position), frames 1.. are motion. For person a the block reads both persons' hidden states after layer
``split`` and corrects a's; the rest of the layers go on. Both persons have the same text and timestep.

    model = ComMDM.around(prior, comm_layers=1)                # only model.comm learns
    a0, b0 = model.both(a, b, timestep, text)                  # each (B, 1 + T, J)

Legend: B rows, T frames, J features, D width, C tokens of the condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from longtake.motion.model import FEEDFORWARD, HEADS, MDM
from torch import nn

CANON = 4  # numbers of the canon token that are used
CANON_SCALE = 10.0  # the canon numbers are stored divided by this
OF_THE_PRIOR = (
    *("features", "width", "layers", "heads", "feedforward", "dropout", "text_width", "padding", "positions"),
    *("modulated", "condition_tokens"),
)  # arguments that a block takes from its prior


class CommunicationBlock(nn.Module):
    """Two persons' hidden states to a correction of the first one's, and to the first one's canon numbers."""

    def __init__(self, width: int, layers: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.canon_agg = nn.Linear(2 * CANON, width)
        self.canon_out = nn.Linear(width, CANON)
        self.aggregation = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, feedforward, dropout, activation="gelu", batch_first=True)
            for _ in range(layers)
        )

    def forward(
        self, mine: torch.Tensor, other: torch.Tensor, canon: torch.Tensor, hidden: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """mine, other: (B, C + T, D), the condition's C tokens first. canon: (B, 2 CANON), mine first. hidden:
        (B, C + T) True where not to look.

        Returns the correction (B, C + T, D) and the canon numbers (B, CANON).
        """
        tokens = self.aggregation(torch.cat([mine, other], -1))
        tokens = torch.cat([self.canon_agg(canon).unsqueeze(1), tokens], 1)
        if hidden is not None:
            hidden = nn.functional.pad(hidden, (1, 0), value=False)
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=hidden)
        return tokens[:, 1:], self.canon_out(tokens[:, 0])


class ComMDM(ModelMixin, ConfigMixin):
    """A frozen MDM (encoder form) and the communication block.

    split: layers of the prior before the block, 1..layers. comm_layers: of the block (the paper's best is 1). The other
    arguments are MDM's. The prior is frozen: it takes no gradient and stays in eval mode.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        features: int = 263,
        width: int = 512,
        layers: int = 8,
        heads: int = HEADS,
        feedforward: int = FEEDFORWARD,
        dropout: float = 0.1,
        text_width: int = 512,
        form: str = "encoder",
        padding: str = "attend",
        transition_embedding: bool = False,
        positions: int = 5000,
        split: int = 8,
        comm_layers: int = 1,
        modulated: bool = False,
        condition_tokens: int = 1,
    ) -> None:
        super().__init__()
        if form != "encoder" or transition_embedding:
            raise ValueError("ComMDM is built on the encoder form without transition embedding")
        if not 1 <= split <= layers:
            raise ValueError(f"split must be 1 to {layers}, the layers of the prior; given {split}")
        self.prior = MDM(
            features,
            width,
            layers,
            heads,
            feedforward,
            dropout,
            text_width,
            padding=padding,
            positions=positions,
            modulated=modulated,
            condition_tokens=condition_tokens,
        )
        self.comm = CommunicationBlock(width, comm_layers, heads, feedforward, dropout)
        self.prior.requires_grad_(False).eval()

    @classmethod
    def around(cls, prior: MDM, *, comm_layers: int = 1, split: int | None = None) -> ComMDM:
        """A new block around a copy of a prior's weights; split: default after the last layer."""
        config = {name: prior.config[name] for name in OF_THE_PRIOR}
        model = cls(**config, split=prior.config["layers"] if split is None else split, comm_layers=comm_layers)
        model.prior.load_state_dict(prior.state_dict())
        return model.to(prior.device)

    def train(self, mode: bool = True) -> ComMDM:
        """Only the block follows; the prior stays in eval mode."""
        super().train(mode)
        self.prior.eval()
        return self

    def forward(
        self,
        mine: torch.Tensor,
        other: torch.Tensor,
        timestep: torch.Tensor | int,
        text: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Clean motion (B, 1 + T, J) of ``mine`` in view of ``other`` (both noisy, canon first). lengths: without the
        canon frame; see ``MDM.forward``."""
        return self._persons([mine, other], timestep, text, lengths, [0])[0]

    def both(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        timestep: torch.Tensor | int,
        text: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean motions of both; the layers before the block run once a person instead of twice."""
        first, second = self._persons([a, b], timestep, text, lengths, [0, 1])
        return first, second

    def _persons(
        self,
        people: Sequence[torch.Tensor],
        timestep: torch.Tensor | int,
        text: torch.Tensor | None,
        lengths: torch.Tensor | None,
        wanted: Sequence[int],
    ) -> list[torch.Tensor]:
        rows = len(people[0])
        time = self.prior.embed_time(timestep, rows)
        condition = self.prior.condition(time, text)
        hidden = self.prior.hidden_frames(people[0][:, 1:], lengths)
        split, layers = self.config["split"], self.config["layers"]
        middle, canon = [], []
        for x in people:
            tokens = self.prior.embed(x[:, 1:], time, text)
            middle.append(self.prior.run(tokens, 0, split, hidden, condition))
            canon.append(x[:, 0, :CANON])
        found = []
        for person in wanted:
            other = 1 - person
            both = torch.cat([canon[person], canon[other]], -1)
            correction, numbers = self.comm(middle[person], middle[other], both, hidden)
            tokens = self.prior.run(middle[person] + correction, split, layers, hidden, condition)
            first = nn.functional.pad(numbers, (0, people[person].shape[-1] - CANON)).unsqueeze(1)
            found.append(torch.cat([first, self.prior.read(tokens)], 1))
        return found


class PairDenoiser:
    """Both persons as rows of one state (R, 2, 1 + T, J), with guidance; rows name the texts, as in ``TextDenoiser``.

    scale: 1 is the released text mode, 0 the prefix mode; others guide the motion, not the canon tokens.
    """

    def __init__(
        self, model: ComMDM, text: torch.Tensor | None, scale: float = 1.0, lengths: Sequence[int] | None = None
    ) -> None:
        if text is None and scale != 0.0:
            raise ValueError(f"guidance of {scale} needs a text; without one the scale is 0")
        self.model, self.text, self.scale = model, text, float(scale)
        self.lengths = None if lengths is None else torch.tensor(list(lengths))

    def __call__(self, x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(list(rows), device=x.device)
        lengths = None if self.lengths is None else self.lengths.to(x.device)[index].clamp(max=x.shape[2] - 1)
        text = None if self.text is None or self.scale == 0.0 else self.text.to(x.device)[index]
        if text is not None and self.scale != 1.0:
            text, x = torch.cat([text, torch.zeros_like(text)]), torch.cat([x, x])
            lengths = None if lengths is None else torch.cat([lengths, lengths])
        a, b = self.model.both(x[:, 0], x[:, 1], timestep, text, lengths=lengths)
        out = torch.stack([a, b], 1)
        if text is None or self.scale == 1.0:
            return out
        conditional, unconditional = out.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        guided[:, :, 0] = conditional[:, :, 0]  # guidance would push the place beyond what the prompt says
        return guided


# ------------------------------------------------------------------------------------------------------- placing


def encode_canon(yaw: torch.Tensor, position: torch.Tensor, features: int = 263) -> torch.Tensor:
    """The canon token (*, features) of a person turned by ``yaw`` (*,) rad about +y and standing at floor ``position``
    (*, 2), metres x and z."""
    token = position.new_zeros(*yaw.shape, features)
    numbers = torch.stack([yaw.cos(), yaw.sin(), position[..., 0], position[..., 1]], -1)
    token[..., :CANON] = numbers / CANON_SCALE
    return token


def first_token(features: int = 263) -> torch.Tensor:
    """The canon token (features,) of the first person: at the origin, looking along +z."""
    return encode_canon(torch.zeros(()), torch.zeros(2), features)


def decode_canon(token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation (*, 3, 3) and position (*, 3) from a canon token (*, >= 4): rows (c0, 0, c1), (0, 1, 0) and their cross
    product, made orthonormal; position (c2, 0, c3). All times 10."""
    numbers = token[..., :CANON] * CANON_SCALE
    front = nn.functional.normalize(numbers[..., :2], dim=-1)
    cos, sin = front.unbind(-1)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rotation = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1).unflatten(-1, (3, 3))
    return rotation, torch.stack([numbers[..., 2], zero, numbers[..., 3]], -1)


def place_pair(
    joints_a: torch.Tensor, joints_b: torch.Tensor, canon_a: torch.Tensor, canon_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both persons (*, T, 22, 3) in one world: a stays as it is, b becomes R_a R_b^T b + (t_b - t_a)."""
    turn_a, place_a = decode_canon(canon_a)
    turn_b, place_b = decode_canon(canon_b)
    turn = (turn_a @ turn_b.transpose(-1, -2)).unsqueeze(-3)
    return joints_a, joints_b @ turn.transpose(-1, -2) + (place_b - place_a)[..., None, None, :]
