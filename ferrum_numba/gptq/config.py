"""How a checkpoint says it was quantised: one model of what all exporters write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ferrum_numba.door import shown
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq import sources
from ferrum_numba.gptq.dialect import plain, said
from ferrum_numba.gptq.on_disk import read_json as read_json
from ferrum_numba.gptq.rules import Rule, Rules
from ferrum_numba.gptq.sources import FILES as FILES
from ferrum_numba.gptq.sources import MODEL_FILE as MODEL_FILE
from ferrum_numba.gptq.sources import SECTION as SECTION

# method -> formats of its checkpoints that can be read, the default first
FORMATS = {
    "gptq": ("gptq", "gptq_v2", "marlin"),
    "awq": ("gemm", "gemv", "gemv_fast", "llm-awq", "awq_marlin"),
    "marlin": ("marlin",),
    "auto-round": ("gptq", "gptq_v2", "gemm"),
    "compressed-tensors": ("pack-quantized",),
}
# words of which a format's layers are packed; AWQ's fast GEMV has its own
PACK_DTYPES = {"gemv_fast": ("int16", "int32"), "llm-awq": ("int16", "int32")}
ORDERED = ("gemm", "gemv", "gemv_fast", "llm-awq", "marlin", "awq_marlin")
# that hold no zero points but 8
SYMMETRIC = ("marlin", "awq_marlin")
# of activations, that are not quantised
ACTIVATION_BITS = 16
# what models call the experts of a token
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k")


@dataclass(frozen=True)
class GptqConfig:
    """What a checkpoint's layers have in common, and the rules for those that differ.

    bits:              of a code; other layers than those of 4 are refused one by one
    group_size:        rows that share a scale; -1 for all of them
    desc_act:          rows may be in act-order; then there is a g_idx
    sym:               every zero point is 8, whatever is stored; a file that does not say so may
                       be symmetric all the same, as its zero points show
    quant_method:      "gptq", "awq", "marlin", "auto-round" or "compressed-tensors"
    checkpoint_format: "gptq", "gptq_v2", "marlin", "gemm", "gemv", "gemv_fast", "llm-awq",
                       "awq_marlin" or "pack-quantized"
    lm_head:           the head is quantised too
    data_type:         of codes; "int"
    act_bits:          of activations; 16
    zero_overflow:     what a v1 zero point means that is stored as 15, as a caller says; see
                       `gptq.overflow`
    rules:             for layers that differ; the first that a name matches counts
    source:            the file it was read from; every error names it
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    sym: bool = False
    quant_method: str = "gptq"
    checkpoint_format: str = "gptq"
    lm_head: bool = False
    data_type: str = "int"
    act_bits: int = ACTIVATION_BITS
    zero_overflow: str | None = None
    rules: tuple[Rule, ...] = ()
    source: str = "config"

    @classmethod
    def load(cls, folder: str | Path) -> GptqConfig:
        """Read what a folder's config files, and the sections in its config.json, say together.

        Raises:
            CheckpointError: there is none, one is damaged, two contradict each other, or what they
                say is not supported.
        """
        places = [(name, said(found, name)) for name, found in sources.found_in(Path(folder))]
        return cls._completed(sources.merged(places), places[0][0])

    @classmethod
    def parse(cls, found: Any, source: str = "config") -> GptqConfig:
        """Return the config of a JSON object; keys that mean nothing here are ignored.

        Raises:
            CheckpointError: a value of another type, one that is not supported, or two that
                contradict each other; it names source, key, found and needed.
        """
        return cls._completed(said(found, source), source)

    def rule(self, name: str) -> Rule | None:
        """Return the rule that counts for a layer: the first that its name matches."""
        return self._by_name.find(name)

    @cached_property
    def _by_name(self) -> Rules:
        return Rules(self.rules)

    def for_layer(self, name: str) -> GptqConfig | None:
        """Return the config of one layer: the first rule that its name matches, applied.

        Returns:
            None where a rule says that the layer is not quantised.

        Raises:
            CheckpointError: what is said of the layer is not supported; it names the layer.
        """
        rule, config, source = self.rule(name), self, self.source
        if rule is not None:
            if rule.changes is None:
                return None
            source = f"{self.source}: {rule.key}"
            if rule.refusal is not None:
                raise CheckpointError(f"{name} {rule.refusal} ({source})")
            changes = plain(rule.changes, source)
            if "checkpoint_format" in changes:
                changes = _with_format({"quant_method": self.quant_method} | changes, source)
            _check_group_size(changes, f"{name}: {source}")
            changes.pop("pack_dtype", None)
            told = {key: value for key, value in changes.items() if value is not None}
            config = replace(self, **told)
            if config.checkpoint_format in SYMMETRIC:
                _check_symmetric(changes, f"{name}: {source}")
        config._check_layer(name, source)
        return config

    @classmethod
    def _completed(cls, values: Mapping[str, Any], source: str) -> GptqConfig:
        """Return the config of what is said, with defaults for what is not."""
        values = _with_format(values, source)
        stored_as = values["checkpoint_format"]
        words = PACK_DTYPES.get(stored_as, ("int32",))
        _need(source, "pack_dtype", values.pop("pack_dtype", None) or "int32", words)
        _check_group_size(values, source)
        told = {name: value for name, value in values.items() if value is not None}
        config = cls(**told, source=source)
        if stored_as in ORDERED:
            _need(source, f"desc_act of {stored_as}", config.desc_act, (False,))
        if stored_as in SYMMETRIC:
            _check_symmetric(values, source)
        return config

    def _check_layer(self, name: str, source: str) -> None:
        """Raise CheckpointError unless these are codes that are read; of 10^5 layers, most are."""
        if (self.bits, self.data_type) == (4, "int") and self.act_bits >= ACTIVATION_BITS:
            return
        where = f"{name}: {source}"
        _need(where, "bits", self.bits, (4,))
        _need(where, "data_type", self.data_type, ("int",))
        raise CheckpointError(f"{where}: act_bits must be at least 16; got {self.act_bits}")


def _with_format(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return values with a method and a format of it, each found by the other where it is missing.

    Raises:
        CheckpointError: an unknown method, or a format that is none of its own.
    """
    values = dict(values)
    stored_as = values.get("checkpoint_format")
    method = values.get("quant_method") or _method_of(stored_as)
    _need(source, "quant_method", method, tuple(FORMATS))
    stored_as = stored_as or FORMATS[method][0]
    if method == "awq" and stored_as == "marlin":
        # its tensors have AWQ's names
        stored_as = "awq_marlin"
    _need(source, f"checkpoint_format of {method}", stored_as, FORMATS[method])
    return values | {"quant_method": method, "checkpoint_format": stored_as}


def _method_of(stored_as: str | None) -> str:
    return next((method for method, formats in FORMATS.items() if stored_as in formats), "gptq")


def _check_group_size(values: Mapping[str, Any], source: str) -> None:
    if "group_size" in values:
        size = values["group_size"]
        if size is None or (size != -1 and size < 1):
            raise CheckpointError(
                f"{source}: group_size must be -1 or at least 1; got {shown(size)}"
            )


def _check_symmetric(values: Mapping[str, Any], source: str) -> None:
    if values.get("sym") is False:
        raise CheckpointError(
            f"{source}: a checkpoint for Marlin holds zero points of 8 only; got sym = false or "
            "zero_point = true"
        )


def _need(source: str, key: str, got: Any, known: tuple[Any, ...]) -> None:
    if got not in known:
        wanted = " or ".join(shown(value) for value in known)
        raise CheckpointError(f"{source}: {key} must be {wanted}; got {shown(got)}")


def experts_per_token(folder: str | Path) -> int | None:
    """Return how many experts a token of the model has, as its config.json says; None if not.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(folder) / MODEL_FILE
    if not path.exists():
        return None
    model = read_json(path)
    sections = (model, model.get("text_config"))
    given = (s.get(name) for s in sections if isinstance(s, dict) for name in TOP_K)
    return next((value for value in given if type(value) is int), None)
