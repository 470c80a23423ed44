"""The transformer: packing changes nothing, every input matters, initialisation is as its table says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from worldline.dit.conditions import first_frame, place_known
from worldline.dit.model import PRESETS, TINY, DiT, DiTConfig
from worldline.dit.patchify import pack
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.nn import layers

CONFIG = DiTConfig(
    in_channels=4, width=32, depth=2, heads=2, text_width=12, rope_axes=(4, 6, 6), learned_positions=(6, 6, 6)
)


def awake(config: DiTConfig = CONFIG, dtype: torch.dtype = torch.float32) -> DiT:
    """A model none of whose matrices is zero, as after some training."""
    torch.manual_seed(0)
    model = DiT(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)


def inputs(sizes: list[tuple[int, int, int]], texts: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    packed = pack([torch.randn(4, *size, generator=generator) for size in sizes], CONFIG.patch)
    lengths = packed.cu_seqlens.diff()
    return {
        "tokens": packed.tokens,
        "coords": packed.coords,
        "cu_seqlens": packed.cu_seqlens,
        "timestep": torch.rand(len(sizes), generator=generator).repeat_interleave(lengths),
        "text": Told(torch.randn(sum(texts), 12, generator=generator), torch.tensor([0, *texts]).cumsum(0)),
        "known": torch.zeros_like(packed.tokens),
        "mask": torch.zeros(len(packed.tokens), 4),
    }


def sample(batch: dict[str, Any], i: int) -> dict[str, Any]:
    (a, b), (c, d) = batch["cu_seqlens"][i : i + 2].tolist(), batch["text"].cu_text[i : i + 2].tolist()
    part = {name: batch[name][a:b] for name in ("tokens", "coords", "timestep", "known", "mask")}
    return part | {
        "text": Told(batch["text"].text[c:d], torch.tensor([0, d - c])),
        "cu_seqlens": torch.tensor([0, b - a]),
    }


RAGGED = inputs([(2, 4, 4), (1, 6, 4), (2, 4, 4), (3, 2, 2)], [3, 1, 5, 2])
EQUAL = inputs([(2, 4, 4)] * 3, [3, 1, 5])


@pytest.mark.parametrize("batch", [RAGGED, EQUAL], ids=["ragged", "equal"])
def test_packed_equals_separate(batch: dict[str, Any]) -> None:
    model = awake()
    whole = model(**batch)
    separate = torch.cat([model(**sample(batch, i)) for i in range(len(batch["cu_seqlens"]) - 1)])
    assert whole.std() > 0.1
    torch.testing.assert_close(whole, separate, atol=1e-5, rtol=1e-5)


def test_rows_in_bands_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients many tokens pass in bands that end where no sample does."""
    model = awake()
    whole = model(**RAGGED)
    monkeypatch.setattr(layers, "BAND_ROWS", 5)
    with torch.no_grad():
        torch.testing.assert_close(model(**RAGGED), whole, atol=1e-5, rtol=1e-5)


def test_gradients_of_packed_equal_the_sum_of_separate() -> None:
    model = awake()
    model(**RAGGED).square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i in range(4):
        model(**sample(RAGGED, i)).square().sum().backward()
    assert len(packed) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=2e-4, rtol=2e-4, msg=name)


@pytest.mark.parametrize("name", ["tokens", "coords", "timestep", "text", "known", "mask"])
def test_every_input_matters(name: str) -> None:
    model, batch = awake(), dict(EQUAL)
    before = model(**batch)
    changes = {"coords": lambda coords: coords.flip(0), "text": lambda told: told._replace(text=1 - told.text)}
    batch[name] = changes.get(name, lambda values: 1 - values)(batch[name])
    assert (model(**batch) - before).abs().max() > 1e-3


def test_word_order_of_text_is_the_encoders_business() -> None:
    """Cross-attention itself is blind to order: what tells left from right comes in the states."""
    model, part = awake(), sample(EQUAL, 2)
    turned = part["text"]._replace(text=part["text"].text.flip(0))
    torch.testing.assert_close(model(**part), model(**part | {"text": turned}), atol=1e-5, rtol=1e-5)


def test_known_and_mask_default_to_nothing_known() -> None:
    model = awake()
    bare = {k: v for k, v in EQUAL.items() if k not in ("known", "mask")}
    assert torch.equal(model(**bare), model(**EQUAL))


def test_without_masks_nothing_of_what_is_known_is_read() -> None:
    model = awake(replace(CONFIG, masks=False))
    assert model.embed.in_features == CONFIG.token_width
    assert torch.equal(model(**EQUAL), model(**EQUAL | {"known": torch.ones_like(EQUAL["known"])}))
    assert model.flops(8, 4) < awake().flops(8, 4)


def test_timesteps_per_token() -> None:
    """A token at time 0 among noisy ones is modulated by its own time."""
    model, part = awake(), sample(EQUAL, 0)
    known, mask = first_frame(torch.randn(4, 1, 4, 4), 2).tokens(CONFIG.patch)
    tokens, timestep = place_known(part["tokens"], part["timestep"], known, mask)
    mixed = model(**part | {"tokens": tokens, "timestep": timestep, "known": known, "mask": mask})
    uniform = model(**part | {"tokens": tokens, "known": known, "mask": mask})
    assert (mixed - uniform)[:4].abs().max() > 1e-3


def test_initialisation() -> None:
    model = DiT(CONFIG)
    assert model(**RAGGED).abs().max() == 0
    for block in model.blocks:
        assert [block.table[i].mean().item() for i in range(6)] == pytest.approx([0, 1, 0.3] * 2)
    assert model.modulation.weight.abs().max() == 0
    assert model.blocks[0].attention.qkv.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_bfloat16_stays_near_float32() -> None:
    exact, low = awake()(**EQUAL), awake(dtype=torch.bfloat16)(**EQUAL)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).square().mean().sqrt() < 0.03 * exact.std()


@torch.no_grad()
def test_wide_sums_bring_bfloat16_nearer_to_float32() -> None:
    errors = []
    for wide in (False, True):
        config = replace(CONFIG, depth=8, wide_sum=wide, cross_gain=True, final_table=True, scales_add_one=True)
        half = awake(config, torch.bfloat16)
        exact = DiT(config)
        exact.load_state_dict(half.state_dict())
        answer, expected = half(**RAGGED), exact(**RAGGED)
        assert answer.dtype == torch.bfloat16
        errors.append(float((answer.float() - expected).norm() / expected.norm()))
    assert errors[1] < 0.6 * errors[0]


def test_far_positions_read_the_last_learned_row() -> None:
    model = awake(replace(CONFIG, learned_positions=(2, 0, 1)))
    assert model(**inputs([(4, 4, 4)], [2])).isfinite().all()


def test_config_survives_json_and_refuses_what_cannot_be() -> None:
    assert DiTConfig(**json.loads(json.dumps(asdict(TINY)))) == TINY
    with pytest.raises(UserError, match="heads=3"):
        DiTConfig(heads=3)
    with pytest.raises(UserError, match="known='grey'"):
        DiTConfig(known="grey")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rope_axes"):
        DiTConfig(rope_axes=(16, 16, 16))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", (5, 8)), ("small", (40, 60)), ("base", (290, 330)), ("xl", (1250, 1400)), ("xxl", (10_500, 11_500))],
)
def test_presets_are_of_their_size(name: str, millions: tuple[int, int]) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in DiT(PRESETS[name]).parameters()) / 1e6
    assert millions[0] < count < millions[1]


def test_flops_count_every_matmul() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = awake(), inputs([(2, 4, 4)], [5])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    # Timestep embedding and learned positions are left out: they do not grow with width squared times tokens.
    assert model.flops(8, 5) == pytest.approx(counter.get_total_flops(), rel=0.45)
    assert model.flops(8, 5) <= counter.get_total_flops()


CHOICES = {
    "factorised": {"factorised": True},
    "sinusoidal": {"rotary": False, "sinusoidal": True, "learned_positions": (0, 0, 0)},
    "learned alone": {"rotary": False},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_of_position_and_attention_pack_as_well(choice: str) -> None:
    model = awake(replace(CONFIG, **CHOICES[choice]))  # type: ignore[arg-type]
    together = model(**RAGGED)
    lengths = RAGGED["cu_seqlens"].diff().tolist()
    for i, part in enumerate(together.split(lengths)):
        torch.testing.assert_close(part, model(**sample(RAGGED, i)), atol=1e-4, rtol=1e-4)
    moved = {**RAGGED, "coords": RAGGED["coords"].flip(0)}
    assert (model(**moved) - together).abs().max() > 1e-3


def test_factorised_attention_looks_back_only() -> None:
    model = awake(replace(CONFIG, factorised=True))
    batch = inputs([(3, 4, 4)], [3])
    later = {**batch, "tokens": batch["tokens"].clone()}
    later["tokens"][8:] += 1.0  # the last of three frames of four tokens
    before, after = model(**batch), model(**later)
    torch.testing.assert_close(after[:8], before[:8], atol=1e-5, rtol=1e-5)
    earlier = {**batch, "tokens": batch["tokens"].clone()}
    earlier["tokens"][:4] += 1.0
    assert (model(**earlier)[8:] - before[8:]).abs().max() > 1e-3
