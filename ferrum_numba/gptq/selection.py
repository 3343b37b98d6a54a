"""Which tensors of a model are linear layers to quantise, and why the others are kept.

What decides: the model's config, shapes, a bias where there is one, and names last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.files import DTYPES, Entry
from ferrum_numba.gptq.tensors import FLOATS, PACK_FACTOR

ENDING = ".weight"
# what a quantised layer has, by the last parts of names
QUANTISED_PARTS = ("qweight", "scales", "qzeros", "g_idx")
# models whose layers are transformers' Conv1D, a linear layer with its weight [in, out]
CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
# parts of the last part of a name: matrices that are no linear layers
NOT_LINEAR = ("embed", "wte", "wpe", "norm", "relative_attention_bias")
SHARED = "shared"
HEADS = ("lm_head", "head", "output", "output_layer", "embed_out")
# any part of a name: small, and quantising them sends tokens to other experts
ROUTERS = ("gate", "router", "shared_expert_gate")
# what stands before a language model in one of several senses: words of a name before its first
# number, as in vision_backbone or image_vit, and what such words begin with, as in siglip2
SENSES = (
    "vit", "vpm", "apm", "sam", "clip", "img", "mm", "projector", "aligner", "resampler", "qformer",
    "perceiver",
)  # fmt: skip
SENSE_STEMS = (
    "vision", "visual", "image", "video", "audio", "speech", "whisper", "conformer", "siglip",
    "dino", "wav2vec", "hubert",
)  # fmt: skip
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

HEAD, NO_LAYER, ROUTER = "the head", "no linear layer", "a router"
TIED = f"{HEAD}: it is the embedding"
EXPERTS = "experts in one tensor"
# reasons of what no loader takes for quantised
SAID_OTHERWISE = (HEAD, NO_LAYER)


@dataclass(frozen=True)
class Model:
    """What a model's config says that its tensors do not.

    tied: the head is the embedding, whatever tensors there are
    """

    model_type: str = ""
    vocab_size: int | None = None
    num_experts: int | None = None
    tied: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Model:
        """Read a config.json; what a part of the model has of its own is in its text_config."""
        text = config.get("text_config")
        known = {**config, **(text if isinstance(text, dict) else {})}

        def number(key: str) -> int | None:
            value = known.get(key)
            return value if isinstance(value, int) else None

        experts = (number(key) for key in NUM_EXPERTS)
        return cls(
            str(config.get("model_type", "")), number("vocab_size"),
            next((n for n in experts if n), None), known.get("tie_word_embeddings") is True,
        )  # fmt: skip


@dataclass(frozen=True)
class Linear:
    """A layer to quantise: its name, rows and columns, and whether its weight is [K, N]."""

    name: str
    K: int
    N: int
    by_rows: bool


class Selection:
    """What to do with each tensor of a model.

    linears: layers to quantise, by the name of their weight
    kept:    other matrices, by the layer's name or the tensor's own, and why
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        model: Model,
        *,
        head: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
    ) -> None:
        """Decide.

        head:    quantise the head too
        include: regular expressions, anywhere in a name: quantise what would be kept by its name
        exclude: likewise, what to keep; it wins

        Raises:
            ProblemError: an expression that is none, or that matches no matrix.
        """
        self._entries, self._model, self._head = entries, model, head
        self._include = _Patterns("include", include)
        self._exclude = _Patterns("exclude", exclude)
        matrices = [n for n, entry in entries.items() if _is_matrix(entry)]
        # outside of its blocks a model has embeddings, heads and adapters
        self._blocks = any(len(entries[n].shape) == 2 and _numbered(n) for n in matrices)
        # a model of one sense alone has no other to keep it from
        self._language = any(
            name.endswith(ENDING) and _numbered(name) and _sense(name) is None for name in matrices
        )
        self.linears: dict[str, Linear] = {}
        self.kept: dict[str, str] = {}
        for name in matrices:
            linear, reason = self._decided(name, entries[name].shape)
            if linear is not None and reason is None:
                self.linears[name] = linear
            else:
                self.kept[name.removesuffix(ENDING)] = reason or NO_LAYER
        names = (*self.kept, *(linear.name for linear in self.linears.values()))
        if head and not any(_last(name) in HEADS for name in names):
            missing = f"{HEAD}: it has no tensor of its own"
            self.kept[HEADS[0]] = TIED if model.tied else missing
        for patterns in (self._include, self._exclude):
            patterns.refuse_unused()

    @property
    def exceptions(self) -> list[str]:
        """Names that a loader would take for quantised layers: linear ones, and of experts."""
        found: dict[str, None] = {}
        for name, reason in self.kept.items():
            if not reason.startswith(SAID_OTHERWISE):
                # a module has its experts' tensors of three dimensions
                found[name.rpartition(".")[0] if reason.startswith(EXPERTS) else name] = None
        return list(found)

    def _decided(self, name: str, shape: tuple[int, ...]) -> tuple[Linear | None, str | None]:
        """Return a layer and why it is kept, if it is; no layer for what is none."""
        layer = name.removesuffix(ENDING)
        # both are asked, so that each knows what it matched
        excluded, included = self._exclude.match(layer), self._include.match(layer)
        if len(shape) > 2 or not name.endswith(ENDING):
            what = EXPERTS if "experts" in name.split(".") else "a tensor"
            return None, f"{what} of {len(shape)} dimensions" if len(shape) > 2 else NO_LAYER
        linear = self._linear(layer, shape)
        if excluded is not None:
            return linear, f"excluded by {excluded}"
        reason = self._by_name(layer, linear)
        # nobody reads a tied head, whoever asks for it
        if included is not None and reason != TIED:
            reason = None
        own = next((p for p in QUANTISED_PARTS if f"{layer}.{p}" in self._entries), None)
        if reason is None and own is not None:
            reason = f"it has a tensor {layer}.{own} of its own"
        if reason is None and (linear.N % PACK_FACTOR or linear.K % PACK_FACTOR):
            reason = f"K = {linear.K} and N = {linear.N} must be multiples of {PACK_FACTOR}"
        return linear, reason

    def _linear(self, layer: str, shape: tuple[int, ...]) -> Linear:
        """Return a layer with its sizes: which of them is N, its bias says where it can."""
        by_rows = self._model.model_type in CONV1D_TYPES and _last(layer) in CONV1D_LAYERS
        bias = self._entries.get(f"{layer}.bias")
        if bias is not None and len(bias.shape) == 1 and shape[0] != shape[1]:
            by_rows = bias.shape[0] == shape[1]
        N, K = reversed(shape) if by_rows else shape
        return Linear(layer, K, N, by_rows)

    def _by_name(self, layer: str, linear: Linear) -> str | None:
        parts, last = layer.split("."), _last(layer)
        of_vocabulary = self._model.vocab_size == linear.N and not _numbered(layer)
        if last in HEADS and (not self._blocks or not _numbered(layer)):
            if self._model.tied:
                return TIED
            return None if self._head else HEAD
        if any(word in last for word in NOT_LINEAR) or last == SHARED or of_vocabulary:
            return NO_LAYER
        sense = _sense(layer)
        if self._language and sense is not None:
            return f"not of the language model, but of {sense}"
        # a router has a row an expert
        routes = self._model.num_experts == linear.N and not last.endswith("_proj")
        if routes or any(part in ROUTERS for part in parts):
            return ROUTER
        if self._blocks and not _numbered(layer):
            return "outside of the model's blocks"
        return None


class _Patterns:
    """Regular expressions of an option, and which of them matched anything."""

    def __init__(self, option: str, texts: Iterable[str]) -> None:
        self._option = option
        self.patterns: dict[str, re.Pattern[str]] = {}
        for text in texts:
            try:
                self.patterns[text] = re.compile(text)
            except re.error as error:
                raise ProblemError(
                    f"{option} {text!r} is no regular expression: {error}"
                ) from error
        self._used: set[str] = set()

    def match(self, name: str) -> str | None:
        """Return the first expression that is found in a name, quoted."""
        found = [text for text, pattern in self.patterns.items() if pattern.search(name)]
        self._used.update(found)
        return repr(found[0]) if found else None

    def refuse_unused(self) -> None:
        """Raise ProblemError if one was found in no name."""
        for text in self.patterns:
            if text not in self._used:
                raise ProblemError(f"{self._option} {text!r} is found in no name of a matrix")


def _is_matrix(entry: Entry) -> bool:
    is_float = DTYPES.get(entry.dtype) in FLOATS
    return is_float and len(entry.shape) >= 2 and 0 not in entry.shape


def _sense(name: str) -> str | None:
    """Return the part of a name that says it is of no language model, or None."""
    inside = False
    for part in name.split("."):
        # in a block, as in img_mlp, such words tell tokens of one model apart; an adapter's do not
        inside = inside or part.isdecimal()
        words = [] if inside else part.lower().split("_")
        if part in SENSE_STEMS or any(w in SENSES or w.startswith(SENSE_STEMS) for w in words):
            return part
    return None


def _numbered(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
