"""Text encoders of the T5 family as transformers has them; Wan's umT5 also from the names of Wan's authors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints.keymap import Entry, Piece, check_depth, fitting, renaming, same
from worldline.checkpoints.weights import Weights
from worldline.errors import UserError
from worldline.nn.hollow import bare

SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"  # one tensor, stored under the first name
NATIVE: Sequence[tuple[str, str]] = (  # patterns of the authors' names (wan/modules/t5.py), and transformers' for them
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"blocks.\1.attn.relative_attention_bias."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


def piece_of(files: Sequence[Path], values: Mapping[str, Any], kind: str = "umt5") -> Piece[Any]:
    """The encoder of these files before it is read: transformers' with its config, or the authors' where that is {}.

    `kind`: "umt5" or "t5". A whole model's decoder is left out.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("text encoder: transformers is not installed; pip install 'worldline[text]'") from None
    place = str(files[0].parent if values else files[0]) if files else "text_encoder"
    weights = Weights(files) if values else Weights(files, renaming(NATIVE))
    if values.get("model_type", kind) != kind:
        raise UserError(
            f"--model {place}: its config.json is of a {values['model_type']}; the text encoder is a {kind}"
        )
    build = getattr(transformers, f"{kind.upper()}EncoderModel")
    with fitting(Path(place)):
        config = getattr(transformers, f"{kind.upper()}Config").from_dict(
            dict(values or config_of_shapes(weights.shapes, place))
        )
        check_depth(config.num_layers, weights, place)
        with bare():
            names = build(config).state_dict()
    decoder = (name for name in weights if name.startswith(("decoder.", "lm_head.")))
    return Piece(place, partial(build, config), weights, table(names), (TIED, *decoder))


def table(names: Iterable[str]) -> list[Entry]:
    """Every tensor of the encoder under the name that it is stored by."""
    return [same(name, SHARED if name == TIED else name) for name in names]


def load(piece: Piece[Any]) -> Any:
    """The encoder as it is stored; float16 becomes bfloat16, since T5's states leave the range of float16."""
    stored = {value.dtype for value in piece.shapes.values()}
    model = piece.load(torch.bfloat16 if torch.float16 in stored else None)
    model.tie_weights()
    return model


def config_of_shapes(shapes: Mapping[str, Tensor], place: str) -> dict[str, Any]:
    """transformers' config from the shapes of tensors (its names), which say all that differs between umT5s."""
    first = "encoder.block.0.layer.0.SelfAttention."
    try:
        vocabulary, width = shapes[SHARED].shape
        buckets, heads = shapes[f"{first}relative_attention_bias.weight"].shape
        inner = shapes[f"{first}q.weight"].shape[0]
        hidden = shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"--model {place} is no umT5 of Wan's authors ({error})") from None
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_heads": heads,
        "num_layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def config_to(model: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """The config.json of an encoder that is stored as `dtype`, or as it is."""
    values: dict[str, Any] = json.loads(model.config.to_json_string())
    return {
        **values,
        "architectures": [type(model).__name__],
        "dtype": str(dtype or model.dtype).removeprefix("torch."),
    }
