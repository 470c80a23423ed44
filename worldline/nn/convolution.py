"""Causal convolutions over video, channels last: the only module that knows which kernel runs where.

On a CPU in fp32 the two spatial axes of a 3x3x3 convolution run by minimal filtering, F(4x4, 3x3) (Winograd 1980;
Lavin & Gray 2016, section 4): 36 products for 16 outputs instead of 144. It is the same sum in another order, exact up
to rounding, which the choice of `POINTS` keeps at that of the direct kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 3  # frames that one output frame sees: its own and two before
TILE = 4  # outputs per side of a tile
BAND_BYTES = 2**23  # of what is worked on at a time: what stays near the cores, and keeps two of them busy
MOST_BAND_BYTES = 2**24  # where the weights that every band reads anew are larger than that
LEAST_PIXELS = 512  # below these, transforming the weights takes longer than it saves
LEAST_CHANNELS = 16
# Which of three taps on doubled pixels fall on the same small one: (output over a pixel, small tap, tap).
MERGE = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
# Where the polynomials are interpolated, besides infinity. Pairs of opposite sign and of product one give half the
# rounding error of the usual 0, +-1, +-2 (Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of Winograd
# Convolution").
POINTS = (0.0, math.sqrt(2), -math.sqrt(2), math.sqrt(0.5), -math.sqrt(0.5))


def causal_conv(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, margin: int = 1) -> Tensor:
    """Convolution with zeros around each frame; an output frame sees its own frame and the two before.

    Args:
        x: (B, T, H, W, C) frames.
        past: (B, 2, H, W, C) the two frames before them; None for zeros.
        weight: (O, C, 3, 3, 3), time first.
        bias: (O,).
        margin: rows and columns of zeros to put around; 0 where the frames bring a border of their own.

    Returns:
        (B, T, H, W, O), or, with a border of their own, (B, T, H - 2, W - 2, O).
    """
    if minimal_filtering_pays(x, weight):
        return minimal_filtering(x, past, weight, bias, margin)
    if x.shape[1] == 1 and past is None:  # an image: the taps on frames before it see zeros
        return conv2d(x, weight[:, :, -1], bias, padding=margin)
    if weight.shape[0] < LEAST_CHANNELS:
        return narrow(x, past, weight, bias, margin)
    return direct(x, past, weight, bias, margin)


def direct(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, margin: int = 1) -> Tensor:
    """`causal_conv` as the equation stands; differentiable, any device."""
    whole = _whole(x, past).permute(0, 4, 1, 2, 3)  # (B, C, 2 + T, H, W), channels last in memory
    return F.conv3d(whole, weight, bias, padding=(0, margin, margin)).permute(0, 2, 3, 4, 1)


def narrow(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, margin: int = 1) -> Tensor:
    """`causal_conv` to few channels: its taps in time are outputs of one 2-D convolution, which fills the kernel."""
    frames, outputs = x.shape[1], weight.shape[0]
    taps = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (3 O, C, 3, 3)
    y = conv2d(_whole(x, past), taps, None, padding=margin)  # (B, 2 + T, H, W, 3 O)
    early, middle, late = (y[:, k : k + frames, ..., k * outputs : (k + 1) * outputs] for k in range(TAPS))
    return early + middle + (late + bias)


def _whole(x: Tensor, past: Tensor | None) -> Tensor:
    """The two frames before, zeros if unknown, and `x`: (B, 2 + T, H, W, C)."""
    return torch.cat([x.new_zeros(x.shape[0], TAPS - 1, *x.shape[2:]) if past is None else past, x], dim=1)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """The same 2-D convolution (O, C, k, k) of every frame: (B, T, H, W, C) -> (B, T, H', W', O)."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B*T, C, H, W), channels last in memory
    y = F.conv2d(images, weight, bias, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def doubled_conv2d(x: Tensor, weight: Tensor, bias: Tensor, margin: int = 1) -> Tensor:
    """Every pixel twice along both sides, then a 3x3 convolution: (B, T, H, W, C) -> (B, T, 2H, 2W, O).

    On doubled pixels a 3x3 kernel meets at most 2x2 different ones: each of the four outputs over one pixel is a 2x2
    convolution of the small picture, with 4 products where the large one takes 9 (Shi et al. 2016, section 3.2).
    `margin` as in `causal_conv`, in small pixels.
    """
    merge = weight.new_tensor(MERGE)
    small = torch.einsum("pay,qbx,ocyx->pqocab", merge, merge, weight).flatten(0, 2)  # (4 O, C, 2, 2)
    biases = bias.repeat(4)

    def doubled(frames: Tensor) -> Tensor:
        around = F.pad(frames, (0, 0, margin, margin, margin, margin)) if margin else frames
        return conv2d(around, small, biases).unflatten(-1, (2, 2, -1))

    if torch.is_grad_enabled():
        return _woven(doubled(x))
    # Some frames at a time: what the convolution gives is as large as what it is woven to, and need not stand whole.
    b, t, h, w, _ = x.shape
    out = x.new_empty(b, t, 2 * (h + 2 * margin - 2), 2 * (w + 2 * margin - 2), len(weight))
    step = max(1, BAND_BYTES // (out[:, :1].numel() * out.element_size()))
    for frames, woven in zip(x.split(step, dim=1), out.split(step, dim=1), strict=True):
        _woven(doubled(frames), woven)
    return out


def doubled_causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every pixel twice along both sides and every frame but the first twice, then a causal 3x3x3 convolution.

    `x` (B, T, H + 2, W + 2, C) brings its border; the first frame stands before itself. -> (B, 2T - 1, 2H, 2W, O).
    As `doubled_conv2d`, but with 8 products where the large convolution takes 27.
    """
    first = doubled_conv2d(x[:, :1], weight.sum(dim=2), bias, margin=0)
    if x.shape[1] == 1:
        return first
    merge = weight.new_tensor(MERGE)  # a frame's first copy sees the copies before it, its second mostly itself
    small = torch.einsum("rat,pby,qcx,oityx->rpqoiabc", merge.flip(0), merge, merge, weight).flatten(0, 3)
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), small, bias.repeat(8)).permute(0, 2, 3, 4, 1)
    copies = [_woven(copy) for copy in y.unflatten(-1, (2, 2, 2, -1)).unbind(4)]
    return torch.cat([first, torch.stack(copies, dim=2).flatten(1, 2)], dim=1)


def _woven(y: Tensor, out: Tensor | None = None) -> Tensor:
    """The four outputs over each pixel, side by side: (B, T, H + 1, W + 1, 2, 2, O) -> `out` (B, T, 2H, 2W, O)."""
    b, t, h, w = y.shape[0], y.shape[1], y.shape[2] - 1, y.shape[3] - 1
    out = y.new_empty(b, t, 2 * h, 2 * w, y.shape[-1]) if out is None else out
    pairs = out.unflatten(2, (h, 2)).unflatten(4, (w, 2))  # (B, T, H, 2, W, 2, O)
    for p in (0, 1):
        for q in (0, 1):
            pairs[:, :, :, p, :, q] = y[:, :, p : p + h, q : q + w, p, q]
    return out


# ---- minimal filtering -------------------------------------------------------------------------


def minimal_filtering_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `minimal_filtering` can run here (fp32, no gradient) and is faster than `direct`."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return x[..., 0].numel() >= LEAST_PIXELS and min(weight.shape[:2]) >= LEAST_CHANNELS


def minimal_filtering(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor, margin: int = 1) -> Tensor:
    """`causal_conv` by F(4x4, 3x3), band of rows after band of rows."""
    kernels = _filter_transform(weight)
    batch, frames, channels = *x.shape[:2], x.shape[-1]
    height, width = (side + 2 * margin - 2 for side in x.shape[2:4])
    lead = 0 if past is None else past.shape[1]
    down, across = -(-height // TILE), -(-width // TILE)
    y = x.new_empty(batch, frames, TILE * down, TILE * across, weight.shape[0])
    row_bytes = (TILE + 2) ** 2 * (lead + frames) * across * channels * x.element_size()
    step = max(1, max(BAND_BYTES, min(kernels[0].nbytes, MOST_BAND_BYTES)) // row_bytes)
    for index in range(batch):
        clip = [x[index]] if past is None else [past[index], x[index]]
        for top in range(0, down, step):
            band = range(top, min(top + step, down))
            pixels = _padded_band(clip, band, across, margin)
            products = _products(_pixel_transform(pixels), kernels, lead)
            out = y[index, :, TILE * band.start : TILE * band.stop]
            _output_transform(products, bias, out.unflatten(1, (-1, TILE)).unflatten(3, (-1, TILE)))
    return y[:, :, :height, :width]


@cache
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4, 6), G (6, 3) and B^T (6, 6) of F(4, 3), in fp64, the point of infinity last.

    y = A^T [(G g) * (B^T d)] is the correlation of six values d with three taps g (Lavin & Gray 2016, eq. 6), made from
    the points by Toom and Cook's method.
    """
    x = torch.tensor(POINTS, dtype=torch.float64)
    n = len(POINTS) + 1
    a = torch.zeros(n, TILE, dtype=torch.float64)
    g, b = torch.zeros(n, 3, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for i in range(n - 1):
        others = torch.cat([x[:i], x[i + 1 :]])
        a[i] = x[i] ** torch.arange(TILE)
        g[i] = x[i] ** torch.arange(3) / (x[i] - others).prod()
        b[i, : n - 1] = _polynomial(others)
    a[-1, -1] = g[-1, -1] = 1.0
    b[-1] = _polynomial(x)
    return a.T.contiguous(), g, b


def _polynomial(roots: Tensor) -> Tensor:
    """Coefficients, lowest first, of the product of (x - root)."""
    coefficients = roots.new_ones(1)
    for root in roots:
        coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
    return coefficients


def _filter_transform(weight: Tensor) -> list[Tensor]:
    """(O, C, 3, 3, 3) -> (36, C, O) of each tap in time: one matrix per place in a tile."""
    outputs, channels = weight.shape[:2]
    squared = torch.kron(transforms()[1], transforms()[1]).float()  # for both axes at once
    taps = weight.reshape(outputs * channels, TAPS, 9)
    # In the order of the weights, so without a copy of them; and each by itself: the C library maps what is larger than
    # 32 MB anew for every call, and clearing it takes longer than filling it.
    kernels = [torch.mm(squared, taps[:, tap].T) for tap in range(TAPS)]
    return [kernel.view(-1, outputs, channels).transpose(1, 2) for kernel in kernels]


def _pixel_transform(x: Tensor) -> Tensor:
    """All 6x6 tiles, two pixels shared with each neighbour: (T, 4h + 2, 4w + 2, C) -> (36, T, h * w, C)."""
    frames, height, width, channels = x.shape
    h, w, side = (height - 2) // TILE, (width - 2) // TILE, TILE + 2
    frame, row, pixel, _ = x.stride()
    lines = x.new_empty(side, frames, h, width, channels)
    _interpolate(x.as_strided(lines.shape, (row, frame, TILE * row, pixel, 1)), lines)
    tiles = x.new_empty(side, side, frames * h, w, channels)
    line, _, row, pixel, _ = lines.stride()
    columns = lines.as_strided((side, *tiles.shape[:1], *tiles.shape[2:]), (pixel, line, row, TILE * pixel, 1))
    _interpolate(columns, tiles.transpose(0, 1))
    return tiles.view(side**2, frames, h * w, channels)


def _interpolate(d: Tensor, out: Tensor) -> None:
    """out = B^T d along the first axis, (6, ...) both. The rows of opposite points share their even and odd parts."""
    square = POINTS[1] ** 2 + POINTS[3] ** 2
    for last, (i, j, k) in ((0, (0, 2, 4)), (5, (1, 3, 5))):
        torch.sub(d[k], d[j], alpha=square, out=out[last])
        out[last] += d[i]
    for first, other in ((1, 3), (3, 1)):
        even = torch.sub(d[4], d[2], alpha=POINTS[other] ** 2)
        odd = torch.sub(d[3], d[1], alpha=POINTS[other] ** 2)
        torch.add(even, odd, alpha=POINTS[first], out=out[first])
        torch.sub(even, odd, alpha=POINTS[first], out=out[first + 1])


def _products(pixels: Tensor, kernels: Sequence[Tensor], lead: int) -> Tensor:
    """Transformed pixels (36, lead + T, N, C) -> (36, T, N, O), summed over the taps in time."""
    frames = pixels.shape[1] - lead
    out = torch.bmm(pixels[:, lead:].flatten(1, 2), kernels[-1]).unflatten(1, (frames, -1))
    for back in range(1, TAPS):  # how many frames before its own an output looks
        seen = min(frames, lead + frames - back)  # outputs that have such a frame; zeros stand before the others
        if seen > 0:
            first = lead + frames - back - seen
            out[:, frames - seen :].flatten(1, 2).baddbmm_(
                pixels[:, first : first + seen].flatten(1, 2), kernels[-1 - back]
            )
    return out


def _output_transform(products: Tensor, bias: Tensor, out: Tensor) -> None:
    """Products (36, T, h * w, O), which are used up, and bias -> out (T, h, 4, w, 4, O)."""
    frames, h, _, w, _, outputs = out.shape
    tiles = products.view(TILE + 2, TILE + 2, frames, h, w, outputs)
    rows = tiles.new_empty(TILE, *tiles.shape[1:])
    _evaluate(tiles, None, rows)
    _evaluate(rows.transpose(0, 1), bias, out.permute(4, 2, 0, 1, 3, 5))


def _evaluate(m: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out (4, ...) = A^T m + bias along the first axis of m (6, ...), which is used up."""
    a, b = POINTS[1], POINTS[3]
    for i in (1, 3):  # sums and differences of opposite points
        m[i] += m[i + 1]
        torch.sub(m[i], m[i + 1], alpha=2, out=m[i + 1])
    for k, (plus, minus) in enumerate(((m[1], m[3]), (m[2], m[4]), (m[1], m[3]), (m[2], m[4]))):
        if bias is None:
            torch.mul(plus, a**k, out=out[k])
        else:
            torch.add(bias, plus, alpha=a**k, out=out[k])
        out[k].add_(minus, alpha=b**k)
    out[0] += m[0]
    out[3] += m[5]


def _padded_band(parts: Sequence[Tensor], band: range, across: int, margin: int) -> Tensor:
    """Rows under the tiles in `band`, with zeros where the frames end, of all parts one after the other: (t, H, W, C)
    each -> (T, 4h + 2, 4 across + 2, C)."""
    height, width, channels = parts[0].shape[1:]
    top, bottom = TILE * band.start - margin, TILE * band.stop + 2 - margin
    seen = range(max(top, 0), min(bottom, height))
    out = parts[0].new_empty(sum(map(len, parts)), bottom - top, TILE * across + 2, channels)
    rows = slice(seen.start - top, seen.stop - top)
    for outside in (out[:, : rows.start], out[:, rows.stop :], out[:, :, :margin], out[:, :, margin + width :]):
        outside.zero_()
    inside = out[:, rows, margin : margin + width]
    for part, place in zip(parts, inside.split([len(part) for part in parts]), strict=True):
        place.copy_(part[:, seen.start : seen.stop])
    return out
