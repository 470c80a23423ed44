"""What fixes the shape of a diffusion transformer, and named presets. A public model is one more preset."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from worldline.errors import UserError

Known = Literal["clean", "clip", "beside", "noisy"]


@dataclass(frozen=True)
class TransformerConfig:
    """What every transformer on packed tokens has.

    Attributes:
        in_channels: channels of the latents.
        patch: latent cells of a token along (t, h, w).
        width, heads: of the transformer; the head dimension is width / heads.
        text_width: width of the text states.
        mlp_ratio: hidden width of the MLPs / width.
        rope_axes: channels of a head for (t, h, w); must sum to the head dimension.
        rope_theta: base of the rotary frequencies.
        masks: whether known latents and their mask are read beside the noisy ones.
        known: how what is known was taught, see `holding`; unless given "clean" with masks and "noisy" without.
        image_width: width of a picture's states (CLIP) that are attended to beside the text; 0 where none are.
        image_positions: rows of the learned positions that are added to them.
        actions: values of the inputs that drive a world over one latent frame; 0 where the model knows none.
    """

    in_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 256
    heads: int = 4
    text_width: int = 256
    mlp_ratio: float = 4.0
    rope_axes: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 100.0
    masks: bool = True
    known: Known | None = None
    image_width: int = 0
    image_positions: int = 0
    actions: int = 0

    def __post_init__(self) -> None:
        for name in ("patch", "rope_axes"):  # a config read from JSON brings lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.known not in (None, *get_args(Known)):
            raise UserError(f"known={self.known!r}: one of {', '.join(get_args(Known))}")
        whole = sum(self.rope_axes)
        if self.width % self.heads:
            raise UserError(f"heads={self.heads} does not divide width={self.width}; try {self.width // whole}")
        if whole != self.head_dim:
            raise UserError(f"rope_axes={self.rope_axes} must sum to width / heads = {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def holding(self) -> Known:
        """How what is known is held in sampling.

        "clean": it stands clean among the noisy tokens, its own at time 0. "clip": it is only read beside them, as a
        clip whose unknown pixels are grey. "beside": it is only read beside them, zeros where unknown. "noisy": the
        model was taught none of these, and sees it as noisy as the rest.
        """
        return self.known or ("clean" if self.masks else "noisy")

    @property
    def pictures(self) -> int:
        """How many it cannot do without: 1, the first; 2, the first and the last."""
        if self.holding != "clip":
            return 0
        return 2 if self.image_positions else 1

    @property
    def cells(self) -> int:
        """P: latent cells of a token."""
        return math.prod(self.patch)

    @property
    def token_width(self) -> int:
        """D: values of a token."""
        return self.in_channels * self.cells


@dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """Everything that fixes a DiT's shape, beside what every transformer has.

    Attributes:
        depth: blocks.
        mlp_gelu: "none" (exact) or "tanh".
        bias: whether the blocks' matrices carry biases; the modulation's shifts do most of their work.
        rope_stretch: positions along (t, h, w) are divided by it: above 1 a longer or larger video stays among the
            positions that were trained (position interpolation, Chen et al. 2023).
        rotary: whether queries and keys are rotated by their positions.
        sinusoidal: whether fixed sines and cosines of the position are added to the tokens.
        learned_positions: rows of the learned absolute tables for (t, h, w); farther tokens read the last
            row, and 0 rows leave an axis to the rotary positions alone.
        norm: of the tokens before attention, text and MLP: "rms" divides by the root mean square, "layer" takes off
            the mean as well.
        cross_gain: whether the norm before attention to text has gains and biases of its own.
        qk_norm: "head" normalises the queries and keys of each head, "width" those of all heads together.
        text_mlp: whether text states pass two layers; else one, between norms.
        final_table: whether the last modulation is a learned table plus the time; else a matrix of the time.
        scales_add_one: whether the blocks' tables hold scales without the one that is added to them (Wan); else ours
            begin at one.
        wide_sum: whether what the blocks add to, and their shifts, scales and gates, stay in float32 beside
            half-precision weights (Wan).
        time_features: sinusoids of the timestep.
        gate_init: opening of the residual gates before training.
        factorised: attention in turn inside a frame and, causally, over the frames at one place; else all to all.
        mask_values: values of the mask per latent cell: 1, or one for each frame that it holds.
    """

    depth: int = 6
    mlp_gelu: str = "none"
    bias: bool = False
    rope_stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotary: bool = True
    sinusoidal: bool = False
    learned_positions: tuple[int, int, int] = (32, 32, 32)
    norm: str = "rms"
    cross_gain: bool = False
    qk_norm: str = "head"
    text_mlp: bool = False
    final_table: bool = False
    scales_add_one: bool = False
    wide_sum: bool = False
    time_features: int = 256
    gate_init: float = 0.3
    factorised: bool = False
    mask_values: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rope_stretch", "learned_positions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in (("norm", ("rms", "layer")), ("qk_norm", ("head", "width"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r}: one of {', '.join(allowed)}")

    @property
    def token_inputs(self) -> int:
        """Values that the model reads of a token: the noisy ones, with masks also the known ones and where they are."""
        return 2 * self.token_width + self.mask_values * self.cells if self.masks else self.token_width


TINY = DiTConfig()
SMALL = replace(TINY, width=512, depth=12, heads=8)
# Those below learn pictures of any size: their positions are rotary alone.
BASE = replace(
    TINY, width=1024, depth=18, heads=8, rope_axes=(32, 48, 48), rope_theta=10_000.0, learned_positions=(0, 0, 0)
)  # 0.3 billion parameters
XL = replace(BASE, width=2048, depth=20, heads=16)  # 1.3 billion
XXL = replace(BASE, width=4096, depth=40, heads=32)  # 11 billion
PRESETS = {"tiny": TINY, "small": SMALL, "base": BASE, "xl": XL, "xxl": XXL}
