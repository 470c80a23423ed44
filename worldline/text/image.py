"""CLIP's image tower, for models that are told an image beside the prompt."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.errors import UserError
from worldline.text.pretrained import load_pretrained, part_of

Resize = Literal["authors", "diffusers"]
CLIP_STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of R, G, B in [0, 1], as CLIP was trained with."""


class HFImage:
    """A frozen CLIP image encoder through transformers (extra `text`): the states before its last layer, as Wan's
    image-to-video models see their image.

    Args:
        path: a folder or hub id of the encoder or, with `subfolder`, of a diffusers pipeline; a local pipeline's
            `image_encoder` is found without it.
        resize: how an image of another size becomes CLIP's square. "authors": stretched, bicubic without antialiasing
            (Wan-Video/Wan2.1, wan/modules/clip.py). "diffusers": the pipeline's image processor, which scales the short
            edge and cuts the middle out; the states then differ by a few per cent. At CLIP's own size both agree.
        model: the encoder itself where it is loaded already; `path` then only leads to the image processor.
    """

    def __init__(
        self,
        path: str,
        dtype: torch.dtype = torch.float32,
        subfolder: str = "",
        resize: Resize = "authors",
        model: Any = None,
    ) -> None:
        if resize not in get_args(Resize):
            raise UserError(f"image encoder: resize={resize!r}; choose authors or diffusers")
        self.path, self.resize, self.part = path, resize, part_of(path, "image_encoder", subfolder)
        classes = {"clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel"}
        self.model = model or load_pretrained("image encoder", path, self.part, classes, dtype)
        self.processor = _processor(path, self.part) if resize == "diffusers" else None
        config = getattr(self.model.config, "vision_config", self.model.config)
        self.width: int = config.hidden_size
        self.side: int = config.image_size

    def to(self, device: torch.device | str) -> HFImage:
        """Move the weights, as nn.Module.to does."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, 1 + patches, width) float32, the class token first."""
        ready = self._ready(pixels).to(self.model.device, self.model.dtype)  # (B, 3, side, side)
        states: Tensor = self.model(pixel_values=ready, output_hidden_states=True).hidden_states[-2]
        return states.float()

    def _ready(self, pixels: Tensor) -> Tensor:
        if self.processor is not None:
            frames = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
            images: Tensor = self.processor(images=list(frames.cpu().numpy()), return_tensors="pt")["pixel_values"]
            return images
        mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in CLIP_STATISTICS)
        square = F.interpolate(pixels.float(), (self.side, self.side), mode="bicubic", align_corners=False)
        return (square / 2 + 0.5 - mean) / std


def _processor(path: str, part: str) -> Any:
    import transformers

    place = part.replace("image_encoder", "image_processor")
    try:
        return transformers.AutoImageProcessor.from_pretrained(path, subfolder=place)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"image processor of {path!r} cannot be loaded: {str(error).splitlines()[0]}") from None
