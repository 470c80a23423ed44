"""Models of transformers in a local folder: those that see pictures caption, those that only read rewrite.

They run on the fastest device, one clip after the other; nothing is fetched and no code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldline.caption.captioner import REQUESTS, Spoken, Ways, spread
from worldline.errors import UserError

MAX_TOKENS = 300


class LocalCaptioner:
    """A vision-language model with its processor and chat template, as transformers saves them."""

    def __init__(self, folder: Path, ways: Ways) -> None:
        transformers = _transformers()
        self.ways, self.frames = ways, ways.frames
        self.model = folder.name
        with _told(folder):
            self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            self.net = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, dtype="auto"
            )
        self.net = self.net.to(_device()).eval()
        self.version = _version(self.net, transformers)

    def prompt(self, style: str) -> str:
        return self.ways.prompt or REQUESTS[style]

    def describe(self, clips: Sequence[np.ndarray], style: str = "full") -> list[Spoken]:
        """A caption for each clip uint8 (T, H, W, 3), in order."""
        return [self._one(clip, style) for clip in clips]

    def _one(self, clip: np.ndarray, style: str) -> Spoken:
        pictures = [Image.fromarray(frame) for frame in clip[spread(len(clip), self.frames)]]
        content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
        content.append({"type": "text", "text": self.prompt(style)})
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=text, images=pictures, return_tensors="pt").to(self.net.device, self.net.dtype)
        return Spoken(_answer(self.net, inputs, self.processor))


class LocalWriter:
    """A language model that only reads: it rewrites prompts."""

    def __init__(self, folder: Path) -> None:
        transformers = _transformers()
        with _told(folder):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.net = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
        self.net = self.net.to(_device()).eval()
        self.model = folder.name

    def __call__(self, request: str) -> str:
        """The answer to a request."""
        text = request
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": request}]
            text = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        inputs = self.tokenizer(text, return_tensors="pt").to(self.net.device)
        return _answer(self.net, inputs, self.tokenizer)


def _answer(net: Any, inputs: Any, tokenizer: Any) -> str:
    import torch

    with torch.no_grad():
        tokens = net.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return " ".join(tokenizer.batch_decode(new, skip_special_tokens=True)[0].split())


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("local models need the extra `text`; install it with `pip install 'worldline[text]'`") from None
    return transformers


class _told:
    """What transformers raises for a folder that it cannot read, as one line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise UserError(f"{self.folder}: no config.json; give the folder of a model as transformers saves it")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | KeyError | ImportError) and not isinstance(error, UserError):
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{self.folder}: transformers cannot open it ({first})") from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _version(net: Any, transformers: Any) -> str:
    return f"{type(net).__name__}, transformers {transformers.__version__}"
