"""Prompts and what is known -> latents: noise from which the transformer, asked step by step, takes what is noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from worldline.checkpoints.folder import Parts
from worldline.diffusion.guidance import cfg, cfg_text_image
from worldline.diffusion.path import RectifiedFlow, add_noise
from worldline.diffusion.samplers import by_name
from worldline.diffusion.timesteps import at_timesteps
from worldline.dit.conditions import Conditions, frames_to_tokens, none, place_known
from worldline.dit.patchify import Packed, grid, pack, patchify, unpack
from worldline.dit.reuse import Reuse
from worldline.dit.told import Told
from worldline.generate.device import Timings
from worldline.generate.drawing import Drawing, Scales, scales_of
from worldline.generate.experts import Experts
from worldline.generate.request import check_pictures, suffixed
from worldline.shapes import Grid
from worldline.text import CachedText, TextStates

FLOW = RectifiedFlow()
Denoise = Callable[[Tensor, Tensor], Tensor]
"""denoise(x (N, D), t ()) -> velocity (N, D), both float32."""


class Denoiser:
    """The text encoder, the transformers and the times of a model.

    Attributes:
        reuses: what steps borrowed from each other, since this was last emptied.
        glimpses: whether it is to remember what is `expected`: the finished latents (C, T', H', W') that the last step
            of the videos in work leads to; None before their first step.
    """

    def __init__(self, parts: Parts, experts: Experts, grid: Grid, timings: Timings) -> None:
        self.text, self.scheduler, self.experts = CachedText(parts.text), parts.scheduler, experts
        self.grid, self.timings = grid, timings
        self.device, self.dtype = experts.device, experts.dtype
        self.reuses: list[Reuse] = []
        self.glimpses = False
        self.expected: Callable[[], list[Tensor]] | None = None

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        drawing: Drawing,
        condition: Conditions | None = None,
        step: Callable[[int], None] | None = None,
        times: Sequence[int] | None = None,
        start: Tensor | None = None,
    ) -> list[Tensor]:
        """Whitened latents (C, T', H', W') float32, one per (prompt, seed), denoised together in one packed sequence.

        Noise is drawn on the CPU from each video's own seed, so that a video does not depend on its neighbours or on
        the device.

        Args:
            condition: what is known of the latents, by default nothing.
            times: numbers of the latent frames, 0 to T' - 1 unless given; then `drawing.shape` holds so many.
            start: whitened latents (C, T', H', W') to begin from where `drawing.strength` is below 1.
        """
        config, latent = self.experts.config, self.grid.latent(drawing.shape)
        check_pictures(config.pictures, 0 if condition is None or not condition.mask.any() else config.pictures)
        size = (
            config.in_channels,
            latent.frames if times is None else len(times),
            latent.height,
            latent.width,
        )
        condition = none(size) if condition is None else condition
        self.expected = None
        with self.timings.of("text"):
            words = [suffixed(prompt, drawing.prompt_suffix) for prompt in prompts]
            others = drawing.copies(known=bool(condition.mask.any())) - 1
            text = self.text.encode(words + [drawing.negative_prompt] * len(prompts) * others)
        frames, rows, columns = grid(size, config.patch)
        tokens = frames * rows * columns
        sigmas, timesteps = self.scheduler.times(drawing.steps, tokens, frames, drawing.shift)
        begin = min(drawing.steps - 1, round((1 - drawing.strength) * drawing.steps))
        noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        packed = pack(noise, config.patch, None if times is None else [times] * len(seeds))
        x = packed.tokens  # (N, D)
        scales = scales_of(drawing, condition, config.patch, sigmas if timesteps is None else timesteps / 1000)
        denoise = self._guided(packed, condition, text, drawing, x, scales)
        sigmas = sigmas[begin:]
        if timesteps is not None:
            denoise = at_timesteps(denoise, sigmas, timesteps[begin:] / 1000)
        if start is not None:
            x = add_noise(FLOW, patchify(start, config.patch)[0].repeat(len(seeds), 1), x, sigmas[0])
        if self.glimpses:
            denoise = self._expecting(denoise, packed)
        sigmas = sigmas.to(self.device)
        callback = (lambda done, _: step(done)) if step else None
        with self.timings.of("dit"):
            x = by_name(drawing.sampler)(denoise, x.to(self.device), sigmas, callback)
        if config.holding != "clip":
            known_tokens, mask = (value.repeat(len(seeds), 1).to(x) for value in condition.tokens(config.patch))
            x, _ = place_known(x, x.new_zeros(len(x)), known_tokens, mask)
        return unpack(x, packed, config.patch)

    def _guided(
        self,
        packed: Packed,
        condition: Conditions,
        text: TextStates,
        drawing: Drawing,
        noise: Tensor,
        scales: Scales,
    ) -> Denoise:
        """The transformer's answer to a sampler, guided when there are two or three texts a video.

        What is known stands clean among the noisy tokens, or only beside them, as the model was taught. One that was
        taught neither would take it for a sample of less noise: for it, what is known is as noisy as the rest, by the
        `noise` (N, D) that the sample began with (replacement, Song et al. 2021, sec. 5).
        """
        videos, holding = len(packed.shapes), self.experts.config.holding
        copies = (len(text.cu_seqlens) - 1) // videos  # all videos with the prompt, then without, see `Drawing.copies`
        last = int(packed.cu_seqlens[-1])
        known, mask = (value.repeat(videos * copies, 1).to(self.device, self.dtype)
                       for value in condition.tokens(self.experts.config.patch))  # fmt: skip
        for value in (known, mask):
            value[2 * last :] = 0  # the third copy sees nothing of what is known
        actions = None
        if condition.actions is not None:
            actions = frames_to_tokens(condition.actions, condition.mask.shape, self.experts.config.patch)
            actions = actions.repeat(videos * copies, 1).to(self.device)
        coords = packed.coords.repeat(copies, 1).to(self.device)
        cu = torch.cat([packed.cu_seqlens] + [packed.cu_seqlens[1:] + last * i for i in range(1, copies)])
        cu = cu.to(self.device)
        told = self._told(text, condition)
        # What the blocks read of the prompts is the same at every step, but for how many copies are asked.
        reading = cache(lambda dit, count: dit.read(told.first(count * videos)))
        kept = cache(lambda dit, count: self._kept(drawing))  # steps are alike if they ask the same of the same model
        eps = noise.to(self.device).repeat(copies, 1)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            dit, most = self.experts.at(t, drawing)
            scale, image_scale = scales(float(t), most)
            beside = isinstance(image_scale, Tensor) or image_scale != 1
            count = 3 if beside else 2 if scale != 1 else 1
            rows, ends = count * last, count * videos + 1
            tokens, timestep = x.repeat(count, 1), t.expand(count * len(x))
            if holding == "clean":
                tokens, timestep = place_known(tokens, timestep, known[:rows], mask[:rows])
            elif holding == "noisy":
                tokens, _ = place_known(tokens, timestep, add_noise(FLOW, known.float(), eps, t)[:rows], mask[:rows])
            velocity = dit(
                tokens,
                coords[:rows],
                cu[:ends],
                timestep.float(),
                reading(dit, count),
                known=known[:rows],
                mask=mask[:rows],
                reuse=kept(dit, count),
                **({} if actions is None else {"actions": actions[:rows]}),
            ).float()
            match velocity.chunk(count):
                case (cond, uncond):
                    return cfg(cond, uncond, scale, drawing.guidance_rescale)
                case (cond, no_text, neither):
                    if isinstance(image_scale, Tensor):
                        image_scale = image_scale.to(x).repeat(videos, 1)
                    return cfg_text_image(cond, no_text, neither, scale, image_scale, drawing.guidance_rescale)
            return velocity

        return denoise

    def _told(self, text: TextStates, condition: Conditions) -> Told:
        """Prompts, and the same pictures beside each of them."""
        padding = None if text.padding is None else text.padding.to(self.device)
        vector = None if text.pooled is None else text.pooled.to(self.device, self.dtype)
        told = Told(text.states.to(self.device, self.dtype), text.cu_seqlens.to(self.device), padding, vector)
        if condition.pictures is None:
            return told
        samples, rows = len(text.cu_seqlens) - 1, len(condition.pictures)
        image = condition.pictures.to(self.device, self.dtype).repeat(samples, 1)
        return told._replace(image=image, cu_image=torch.arange(samples + 1, device=self.device) * rows)

    def _kept(self, drawing: Drawing) -> Reuse | None:
        """What steps may borrow from each other, where they may."""
        if not drawing.reuse:
            return None
        self.reuses.append(Reuse(drawing.reuse))
        return self.reuses[-1]

    def _expecting(self, denoise: Denoise, packed: Packed) -> Denoise:
        """`denoise` that remembers which finished latents, x0 = x - t v, its last answer leads to."""

        def remembering(x: Tensor, t: Tensor) -> Tensor:
            velocity = denoise(x, t)
            self.expected = lambda: unpack(x - t * velocity, packed, self.experts.config.patch)
            return velocity

        return remembering


def reused(each: Sequence[Reuse]) -> dict[str, float]:
    """How many answers of the model were asked for and borrowed, and by how much a borrowed one errs, see `Reuse`."""
    errors = [error for one in each for error in one.errors]
    counts = {"asked": sum(one.asked for one in each), "borrowed": sum(one.reused for one in each)}
    return counts | ({"error": round(float(np.mean(errors)), 4)} if errors else {})
