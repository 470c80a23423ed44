"""Text encoders: prompts in, packed token-level states out, never a pooled vector alone (it tells no left from right).

`WordTransformer` is small and trained with the diffusion transformer; `MiniLM` and `HFText` are pretrained and
frozen; `ByteEncoder` is for tests; `WithPooled` adds the pooled vector of a second one; `CachedText` remembers what any
of them said about a prompt. `HFImage` encodes images, for models that are told one beside the prompt.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from worldline.errors import UserError
from worldline.text.image import HFImage
from worldline.text.pretrained import HFText, MiniLM
from worldline.text.states import ByteEncoder, CachedText, TextEncoder, TextStates, WithPooled
from worldline.text.words import WordConfig, WordTransformer

__all__ = [
    "ByteEncoder",
    "CachedText",
    "HFImage",
    "HFText",
    "MiniLM",
    "TextEncoder",
    "TextStates",
    "WithPooled",
    "WordConfig",
    "WordTransformer",
    "encoder_config",
    "from_config",
]


def from_config(config: dict[str, Any]) -> TextEncoder:
    """The encoder that `encoder_config` described, trained weights not yet loaded; raises UserError if unknown."""
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if not key.startswith("_")
    }
    kind = config.get("_class_name")
    try:
        match kind:
            case "WordTransformer":
                return WordTransformer(WordConfig(**values))
            case "MiniLM":
                return MiniLM(**values)
            case "HFText":
                return HFText(**values)
            case "ByteEncoder":
                return ByteEncoder(**values)
    except TypeError as error:
        raise UserError(f"text encoder: config.json does not fit {kind} ({error})") from None
    raise UserError(f"text encoder {kind!r}: unknown; one of WordTransformer, MiniLM, HFText, ByteEncoder")


def encoder_config(encoder: TextEncoder) -> dict[str, Any]:
    """JSON-serialisable description from which `from_config` builds the encoder again."""
    inner = encoder.encoder if isinstance(encoder, CachedText) else encoder
    if isinstance(inner, WordTransformer):
        return {"_class_name": "WordTransformer", **asdict(inner.config)}
    if isinstance(inner, HFText):
        names = ("path", "max_tokens", "subfolder", "padding", "clean")
        return {"_class_name": "HFText", **{name: getattr(inner, name) for name in names}}
    if isinstance(inner, ByteEncoder):
        return {"_class_name": "ByteEncoder", "width": inner.width}
    return {"_class_name": type(inner).__name__}
