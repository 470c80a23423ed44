"""Makes a loaded model ready for a request, in the memory that there is."""

from __future__ import annotations

from functools import cached_property

from worldline.checkpoints.folder import Parts
from worldline.checkpoints.outline import Outline
from worldline.generate.codec import Codec
from worldline.generate.denoiser import Denoiser
from worldline.generate.plan import fitting_cut, setting, spare
from worldline.generate.request import Request


class Room:
    """The memory that a model may take: at most `max_memory` bytes of the process or the device, or what is free."""

    def __init__(self, parts: Parts, codec: Codec, denoiser: Denoiser, max_memory: float | None) -> None:
        self.parts, self.codec, self.denoiser, self.max_memory = parts, codec, denoiser, max_memory

    @cached_property
    def outline(self) -> Outline:
        """The model without its weights, from which plans are made."""
        return Outline.of_parts(self.parts)

    def prepare(self, request: Request, how: str = "auto", reads: bool = False, streamed: bool = False) -> None:
        """Settles how the frames of a request are cut from now on, see `generate.plan`, and whether two experts stay.

        `reads`: known pixels are encoded; `streamed`: frames are given away as they are finished. Raises UserError with
        the nearest size or length that fits where it does not fit into memory.
        """
        self.denoiser.reuses.clear()
        about = {"ready": True, "reads": reads, "streamed": streamed, "how": how}
        where = setting(self.codec.device, self.codec.dtype, self.parts.defaults, self.max_memory, **about)
        cells = request.grid.latent(request.padded)
        self.codec.cuts[cells.height, cells.width] = fitting_cut(self.outline, request, where)
        if self.denoiser.experts.take_turns:
            self.denoiser.experts.settle(spare(self.outline, request, where))
