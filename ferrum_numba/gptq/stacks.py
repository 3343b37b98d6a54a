"""Names of a block's experts, as models have them: one layer each, or all of them in one tensor.

    layers.0.mlp.experts.{e}                 Qwen3-MoE, DeepSeek, GLM: gate_proj, up_proj, down_proj
    layers.0.block_sparse_moe.experts.{e}    Mixtral: w1 and w3, w2
    layers.0.feed_forward.experts.{e}        Llama-4: gate_proj, up_proj, down_proj
    layers.0.mlp.experts.{p}.{e}             gpt-oss, unfused: gate_up_projs, down_projs
    layers.0.mlp.experts                     in one tensor [E, ...]: gate_up_proj, down_proj

Shared experts are layers like any other: model.layers.0.mlp.shared_experts.gate_up_proj.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NUMBER, PROJECTION = "{e}", "{p}"


@dataclass(frozen=True)
class Pattern:
    """Names of experts' projections.

    text: with {e} for the number and, where there are projections, {p} for their names
    """

    text: str

    @classmethod
    def of(cls, text: str, projections: Sequence[str]) -> Pattern:
        """Return what a caller wrote; projections come last where it does not say where."""
        missing = bool(projections) and PROJECTION not in text
        return cls(f"{text}.{PROJECTION}" if missing else text)

    @property
    def numbered(self) -> bool:
        """Tell whether each expert has a name of its own."""
        return NUMBER in self.text

    def name(self, projection: str, e: int | None = None) -> str:
        """Return the name of a projection of an expert, or of all of them."""
        text = self.text if e is None else self.text.replace(NUMBER, str(e))
        return text.replace(PROJECTION, projection)

    def numbers(self, names: Iterable[str]) -> set[int]:
        """Return the numbers of the experts that have a layer of these names."""
        text = re.escape(self.text).replace(re.escape(NUMBER), r"(\d+)", 1)
        text = text.replace(re.escape(NUMBER), r"\1").replace(re.escape(PROJECTION), ".+")
        pattern = re.compile(text)
        return {int(match[1]) for match in map(pattern.fullmatch, names) if match}
