"""The diffusion transformer: packed spacetime tokens in, velocity out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.dit.blocks import NORMS, Actions, Block, Context, Picture, Reading, View, factorised_views
from worldline.dit.config import BASE, PRESETS, SMALL, TINY, XL, XXL, DiTConfig
from worldline.dit.reuse import Reuse
from worldline.dit.told import Told
from worldline.nn.attention import Segments, as_segments
from worldline.nn.layers import MLP, RowIndex, TimestepEmbedding, modulate, rms_normalise, wide_linear
from worldline.nn.rope import rope_tables, sincos

__all__ = ["BASE", "PRESETS", "SMALL", "TINY", "XL", "XXL", "DiT", "DiTConfig", "Reading", "Told"]


class DiT(nn.Module):
    """Diffusion transformer on packed tokens with per-token timesteps (Peebles & Xie 2022)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.token_inputs, width)
        axes = config.learned_positions if any(config.learned_positions) else ()
        self.positions = nn.ParameterList(torch.empty(rows, width) for rows in axes)
        self.actions = Actions(config) if config.actions else None
        self.norm = NORMS[config.norm]
        self.text: nn.Module = nn.Linear(config.text_width, width)
        if config.text_mlp:
            self.text = MLP(config.text_width, width, "tanh", out=width)
        self.picture = Picture(config) if config.image_width else None
        self.time = TimestepEmbedding(width, config.time_features)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = None if config.final_table else nn.Linear(width, 2 * width)
        self.final_table = nn.Parameter(torch.empty(2, width)) if config.final_table else None
        self.head = nn.Linear(width, config.token_width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation of the model.

        | parameter                                  | value                                           |
        | every matrix not named below               | normal, std 1 / sqrt(fan in)                    |
        | every bias                                 | 0                                               |
        | cross-attention's output                   | the same times `gate_init`: it has no gate      |
        | learned positions                          | normal, std 0.02                                |
        | gains of queries and keys                  | 1                                               |
        | modulation, final modulation and its table | 0: every block starts alike for all timesteps   |
        | block tables: shift, scale, gate           | 0, 1, `gate_init` (open gates learn earlier)    |
        | head, actions' output                      | 0: nothing is predicted or added at first       |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        pictured = [] if self.picture is None or self.picture.positions is None else [self.picture.positions]
        for position in (*self.positions, *pictured):
            nn.init.normal_(position, std=0.02)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.cross.out.weight.mul_(self.config.gate_init)
            nn.init.ones_(block.attention.gain)
            nn.init.ones_(block.cross.gain)
            if block.cross.gain_image is not None:
                nn.init.ones_(block.cross.gain_image)
            for row, value in enumerate((0.0, 1.0, self.config.gate_init) * 2):
                nn.init.constant_(block.table[row], value)
        for linear in (self.modulation, self.head, *([] if self.final is None else [self.final])):
            nn.init.zeros_(linear.weight)
        if self.final_table is not None:
            nn.init.zeros_(self.final_table)
        if self.actions is not None:
            nn.init.zeros_(self.actions.down.weight)

    def forward(
        self,
        tokens: Tensor,
        coords: Tensor,
        cu_seqlens: Tensor,
        timestep: Tensor,
        text: Told | Reading,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        trace: list[Tensor] | None = None,
        actions: Tensor | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """Predict the velocity eps - x0 of every token.

        Args:
            tokens: (N, D) noisy tokens of all samples, D = in_channels * pt*ph*pw.
            coords: (N, 3) integer (t, h, w).
            cu_seqlens: (B+1,) cumulative numbers of tokens.
            timestep: (N,) float32 in [0, 1], 1 = pure noise; wholly known tokens have 0.
            text: states of all prompts, or what `read` made of them once for all steps.
            known: (N, D) known tokens, zero where unknown; None means nothing is known. Not read without `masks`.
            mask: (N, M*P), 1 = known, M the config's `mask_values`; None means nothing is known.
            trace: receives the states (N, width) after every block.
            actions: (N, A + 1) as `Actions` reads them; None means none are given.
            reuse: what earlier steps leave, where an approximation will do.

        Returns:
            (N, D) in the type of the weights.
        """
        places = coords / coords.new_tensor(self.config.rope_stretch, dtype=torch.float32)  # (N, 3)
        x = self._embed(tokens, places, known, mask)  # (N, width)
        if self.actions is not None and actions is not None:
            x = x + self.actions(actions.to(x.dtype))
        dtype = x.dtype
        unique, index = torch.unique(timestep, return_inverse=True)  # (U,), (N,)
        # The type of what blocks add to, and of their shifts, scales and gates.
        wide = torch.promote_types(dtype, torch.float32) if self.config.wide_sum else dtype
        context = Context(
            rows=RowIndex(index, len(unique), wide),
            rope=rope_tables(places * self.config.rotary, self.config.rope_axes, self.config.rope_theta, dtype),
            segments=as_segments(cu_seqlens),
            reading=text if isinstance(text, Reading) else self.read(text),
        )
        time = self.time(unique, wide)  # (U, width)
        x, modulation = x.to(wide), wide_linear(F.silu(time), self.modulation)  # (N, width), (U, 6 * width)
        if self.config.scales_add_one:
            modulation.unflatten(1, (6, -1))[:, 1::3] += 1  # for all blocks at once
        views = factorised_views(coords, cu_seqlens) if self.config.factorised else (View(context.segments),)

        def through(x: Tensor, first: int, stop: int) -> Tensor:
            for i in range(first, stop):
                x = self.blocks[i](x, context.reading.of(i), modulation, views[i % len(views)], context)
                if trace is not None:
                    trace.append(x)
            return x

        def answer(x: Tensor) -> Tensor:
            shift, scale = context.rows.gather(self._last(time)).chunk(2, dim=-1)  # (runs, 1, width)
            return self.head(modulate(self.norm(x), shift, scale + 1).to(dtype))  # type: ignore[no-any-return]

        depth = len(self.blocks)
        if reuse is None:
            return answer(through(x, 0, depth))
        return reuse(x, through(x, 0, 1), lambda left: through(left, 1, depth), answer)

    def read(self, told: Told) -> Reading:
        """What every block reads of prompts, and of pictures: it holds for all steps of a sampler."""
        dtype = self.embed.weight.dtype
        text, cu_text, counts = told.rows()
        text = text.to(dtype)
        states = (
            self.text(text) if self.config.text_mlp else rms_normalise(self.text(rms_normalise(text)))
        )  # (M, width)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        read = tuple(block.cross.read(states) for block in blocks)
        if told.image is None or told.cu_image is None or self.picture is None:
            return Reading(Segments(cu_text), read, counts)
        seen = self.picture(told.image.to(dtype))  # (K, width)
        pictures = tuple(block.cross.read(seen, image=True) for block in blocks)
        return Reading(Segments(cu_text), read, counts, Segments(told.cu_image), pictures)

    def _last(self, time: Tensor) -> Tensor:
        """Shift and scale (U, 2 * width) of the last modulation, from the time (U, width)."""
        if self.final_table is not None:
            return (self.final_table + time[:, None]).flatten(1)
        assert self.final is not None
        return self.final(F.silu(time))  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor, places: Tensor, known: Tensor | None, mask: Tensor | None) -> Tensor:
        """Tokens, known latents and mask through one matrix, plus the learned positions: (N, width)."""
        dtype = self.embed.weight.dtype
        read = [tokens]
        if self.config.masks:
            read.append(torch.zeros_like(tokens) if known is None else known)
            width = self.config.mask_values * self.config.cells
            read.append(tokens.new_zeros(len(tokens), width) if mask is None else mask)
        x = self.embed(torch.cat([values.to(dtype) for values in read], dim=-1))
        if self.config.sinusoidal:
            x = x + sincos(places, self.config.width, dtype)
        if not len(self.positions):
            return x  # type: ignore[no-any-return]
        # One matmul reads all tables and sums their gradients in fp32.
        tables = torch.cat(list(self.positions))  # (rows of all axes, width)
        one_hot = torch.zeros(len(x), len(tables), dtype=dtype, device=x.device)
        first = 0
        for axis, table in enumerate(self.positions):
            if len(table):
                index = places[:, axis, None].round().long().clamp(max=len(table) - 1) + first
                one_hot.scatter_(1, index, 1.0)
            first += len(table)
        return torch.addmm(x, one_hot, tables)

    def stack(self) -> list[nn.Module]:
        """The blocks, in order."""
        return list(self.blocks)

    def flops(self, tokens: int, text: int) -> int:
        """Floating-point operations of the matmuls and attention of one forward pass over one sample.

        tokens, text: the sample's numbers of tokens and text tokens. Training costs three times as much.
        """
        c = self.config
        per_token = 6 * c.width**2 + 2 * round(c.width * c.mlp_ratio) * c.width  # qkv, out, q, out, MLP
        per_text = 2 * c.width**2
        scores = 2 * tokens * c.width * (tokens + text)
        block = per_token * tokens + per_text * text + scores
        ends = tokens * c.width * (c.token_inputs + c.token_width) + text * c.text_width * c.width
        return 2 * (c.depth * block + ends)
