"""The reader's learned parts: a pixel-to-colour table, a shape net on small crops, a size-and-speed gauge (numpy only).

The weights lie beside this file; `python -m worldline.worlds.verify_training` makes them again from nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from worldline.worlds.scene import COLOURS, SHAPES

WEIGHTS = Path(__file__).with_name("verify_weights.safetensors")
COLOUR_NAMES = tuple(COLOURS)
CROP = 20  # side of a crop, pixels
BINS = 32  # levels per channel of the pixel table

Tensors = dict[str, np.ndarray]


def load_tensors(path: Path) -> Tensors:
    """Tensors of a safetensors file as float32, read without torch."""
    from safetensors.numpy import load_file

    return {name: value.astype(np.float32) for name, value in load_file(path).items()}


@cache
def weights() -> Tensors:
    return load_tensors(WEIGHTS)


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mlp(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """Dense layers `name.0`, `name.1`, ... with ReLU between them."""
    i = 0
    while f"{name}.{i}.weight" in w:
        if i:
            x = np.maximum(x, 0)
        x = x @ w[f"{name}.{i}.weight"].T + w[f"{name}.{i}.bias"]
        i += 1
    return x


def pixel_table(w: Tensors) -> np.ndarray:
    """Probabilities (32768, 9) of {background, 8 colours} for every 5-bit RGB value."""
    axis = (np.arange(BINS, dtype=np.float32) + 0.5) / BINS
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return _softmax(mlp(w, "pixel", grid * 2 - 1)).astype(np.float32)


@cache
def shipped_table() -> np.ndarray:
    return pixel_table(weights())


def _conv_relu_pool(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 same convolution, ReLU, 2x2 maximum: (N, H, W, C) -> (N, H/2, W/2, D)."""
    n, h, w, c = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    flat = np.concatenate(taps, -1).reshape(-1, 9 * c)  # columns (row, column, channel)
    kernel = weight.transpose(2, 3, 1, 0).reshape(9 * c, -1)
    y = np.maximum(flat @ kernel + bias, 0).reshape(n, h // 2, 2, w // 2, 2, -1)
    return y.max((2, 4))


def shape_log_probs(w: Tensors, crops: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, 4) of `SHAPES` for crops (N, 2, 20, 20): own-colour mask and standardised brightness."""
    if len(crops) == 0:
        return np.zeros((0, len(SHAPES)), np.float32)
    x = crops.transpose(0, 2, 3, 1)  # (N, 20, 20, 2)
    for i in range(2):
        x = _conv_relu_pool(x, w[f"conv.{i}.weight"], w[f"conv.{i}.bias"])
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # (N, C * 5 * 5), as torch flattens
    logits = mlp(w, "head", x)
    return np.log(_softmax(logits) + 1e-6)


def gauge(w: Tensors, features: np.ndarray) -> np.ndarray:
    """(log half-height, log travelled span) in world units from `measure.gauge_features` (N, F)."""
    return mlp(w, "gauge", (features - w["gauge_mean"]) / w["gauge_std"])


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Write float16 safetensors (atomically, so that a reader never sees half a file)."""
    from safetensors.numpy import save_file

    part = path.with_suffix(".part")
    save_file({name: np.ascontiguousarray(value.astype(np.float16)) for name, value in tensors.items()}, part)
    part.replace(path)
