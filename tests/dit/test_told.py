"""What a model is told: padding becomes one counted row, and the first samples can be had alone."""

from __future__ import annotations

import torch

from worldline.dit.model import DiT
from worldline.dit.told import Told
from worldline.nn.attention import attention, reference


def test_padding_is_one_row_that_counts() -> None:
    text = torch.arange(1.0, 6.0)[:, None].expand(5, 3)
    told = Told(text, torch.tensor([0, 2, 4, 5]), torch.tensor([6, 0, 7]))
    rows, cu, counts = told.rows()
    assert rows[:, 0].tolist() == [1, 2, 0, 3, 4, 5, 0]
    assert cu.tolist() == [0, 3, 5, 7]
    assert counts is not None
    assert counts.tolist() == [1, 1, 6, 1, 1, 1, 7]
    assert told.first(2).rows()[0][:, 0].tolist() == [1, 2, 0, 3, 4]
    single = told._replace(padding=torch.tensor([0, 0, 0])).rows()
    assert single[2] is None
    assert torch.equal(single[0], text)


def test_counted_keys_are_repeated_keys() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(7, 2, 8), torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    counts = torch.tensor([1.0, 3.0, 1.0, 1.0, 4.0])
    cu_q, cu_k = torch.tensor([0, 4, 7]), torch.tensor([0, 2, 5])
    whole = counts.long()
    expected = reference(
        q, k.repeat_interleave(whole, 0), v.repeat_interleave(whole, 0), cu_q, torch.tensor([0, 4, 10])
    )
    torch.testing.assert_close(attention(q, k, v, cu_q, cu_k, counts=counts), expected)


def test_what_was_read_once_serves_every_step(micro_parts) -> None:  # type: ignore[no-untyped-def]
    dit: DiT = micro_parts.dit
    torch.manual_seed(0)
    tokens, coords = torch.randn(8, 64), torch.stack([torch.arange(8)] * 3, dim=1)
    text, cu, cu_text = torch.randn(5, 16), torch.tensor([0, 3, 8]), torch.tensor([0, 2, 5])
    time = torch.rand(8)
    reading = dit.read(Told(text, cu_text))
    assert torch.equal(dit(tokens, coords, cu, time, reading), dit(tokens, coords, cu, time, Told(text, cu_text)))
    alone = dit.read(Told(text, cu_text).first(1))
    torch.testing.assert_close(
        dit(tokens[:3], coords[:3], cu[:2], time[:3], alone), dit(tokens, coords, cu, time, reading)[:3]
    )
