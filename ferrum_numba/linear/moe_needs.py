"""Which of a checkpoint's layers form layers of experts, and what `MoeLayer` will run for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.checkpoint import LayerInfo
from ferrum_numba.gpu import Gpu
from ferrum_numba.linear import choice, needs
from ferrum_numba.linear.moe_spec import MoeSpec
from ferrum_numba.linear.moe_stages import ROUTE
from ferrum_numba.linear.stages import default, packing
from ferrum_numba.linear.stores import MarlinStore
from ferrum_numba.linear.weight import Weight
from ferrum_numba.results.decisions import Decision

# a block's experts are called so, and each by its number; gate and up, then down, of one of them
EXPERTS = "experts"
PROJECTIONS = (
    (("gate_up_proj",), "down_proj"), (("gate_proj", "up_proj"), "down_proj"), (("w1", "w3"), "w2"),
)  # fmt: skip
# beside them, what every token has
SHARED = ("shared_expert", "shared_experts")


@dataclass(frozen=True)
class Block:
    """The experts of a block of a model.

    gate_up, down: what each of them is
    num_experts:   how many there are
    shared:        gate_up and down of the shared experts, or None
    """

    gate_up: Weight
    down: Weight
    num_experts: int
    shared: tuple[Weight, Weight] | None = None

    def spec(self, top_k: int) -> MoeSpec:
        """Return what a layer of them is, of which each token has top_k.

        Raises:
            ProblemError: there is no such layer, or an expert cannot be packed.
        """
        for stack in (self.gate_up, self.down):
            plain = replace(stack, act_order=False).problem(1)
            reason = choice.refusal(MarlinStore.kind, plain)
            if reason is not None:
                raise ProblemError(f"{stack.name}: experts of a layer are packed; {reason}")
        return MoeSpec(self.gate_up, self.down, self.num_experts, top_k)

    def programs(
        self, top_k: int, tokens: Sequence[int], decisions: Sequence[Decision], gpu: Gpu
    ) -> Iterator[tuple[Kernel, Config]]:
        """Yield what a layer runs with these numbers of tokens, however they are routed.

        Raises:
            ProblemError: as `spec`, or more tokens than any kernel takes.
        """
        spec = self.spec(top_k)
        for stack in (spec.gate_up, spec.down):
            pack = packing(stack.problem(1), gpu)
            yield pack.kernel, pack.config
        for T in tokens:
            shared = None
            if self.shared is not None:
                shared = needs.task(self.shared[0], T), needs.task(self.shared[1], T)
            stages = spec.task(T, None, shared).stages(decisions, gpu)
            yield from ((stage.kernel, stage.config) for stage in stages)
            # whatever is chosen for the rest, it is chosen once
            for logits in (spec.gate_up.dtype, "fp32"):
                route = spec.task(T, logits).route
                assert route is not None, "there are logits"
                stage = default(ROUTE, route, gpu)
                yield stage.kernel, stage.config


def blocks(layers: Iterable[LayerInfo], dtype: str) -> list[Block]:
    """Return the experts of a checkpoint's blocks, each kind once.

    Experts that are not alike, or of which one is missing, form no layer.

    dtype: "fp16" or "bf16", of x and out
    """
    layers = list(layers)
    stored = needs.weights(layers, dtype)
    stacked = {layer.name: layer.experts for layer in layers if layer.experts is not None}
    found: dict[Block, Block] = {}
    candidates = [_block(stored, base, numbers) for base, numbers in _numbered(stored).items()]
    for block in (*candidates, *_in_one_tensor(stored, stacked)):
        if block is not None:
            found.setdefault(_nameless(block), block)
    return list(found.values())


def _in_one_tensor(
    stored: Mapping[str, Weight], stacked: Mapping[str, int]
) -> Iterator[Block | None]:
    """Yield the blocks whose experts are in one tensor for each projection."""
    bases = (name.rpartition(".")[0] for name in stacked)
    for base in dict.fromkeys(b for b in bases if b.rpartition(".")[2] == EXPERTS):
        pair = _expert({name: stored[name] for name in stacked if name in stored}, base)
        counts = {count for name, count in stacked.items() if name.rpartition(".")[0] == base}
        if pair is not None and len(counts) == 1:
            yield Block(*pair, counts.pop(), _shared(stored, base))


def _numbered(stored: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the experts by what stands before them."""
    found: dict[str, set[int]] = {}
    for name in stored:
        base, _, number = name.rpartition(".")[0].rpartition(".")
        if number.isdecimal() and base.rpartition(".")[2] == EXPERTS:
            found.setdefault(base, set()).add(int(number))
    return found


def _block(stored: Mapping[str, Weight], base: str, numbers: set[int]) -> Block | None:
    pairs = [_expert(stored, f"{base}.{e}") for e in range(max(numbers) + 1)]
    experts = [pair for pair in pairs if pair is not None]
    if len(experts) < len(pairs):
        return None
    ups, downs = (_all_of(list(stack)) for stack in zip(*experts, strict=True))
    if ups is None or downs is None:
        return None
    return Block(ups, downs, len(experts), _shared(stored, base))


def _shared(stored: Mapping[str, Weight], base: str) -> tuple[Weight, Weight] | None:
    """Return the shared experts that stand beside a block's."""
    prefix = base.removesuffix(EXPERTS)
    found = (_expert(stored, f"{prefix}{name}") for name in SHARED)
    return next((pair for pair in found if pair is not None), None)


def _expert(stored: Mapping[str, Weight], name: str) -> tuple[Weight, Weight] | None:
    for parts, last in PROJECTIONS:
        gate_up = needs.side_by_side(
            f"{name}.gate_up_proj", [stored.get(f"{name}.{part}") for part in parts]
        )
        down = stored.get(f"{name}.{last}")
        if gate_up is not None and down is not None:
            return gate_up, down
    return None


def _all_of(stack: Sequence[Weight]) -> Weight | None:
    """Return what a stack is, in which what some experts have is explicit for all."""
    first = replace(
        stack[0],
        symmetric=all(weight.symmetric for weight in stack),
        act_order=any(weight.act_order for weight in stack),
    )
    for weight in stack:
        alike = replace(weight, name=first.name, symmetric=first.symmetric)
        if replace(alike, act_order=first.act_order) != first:
            return None
    return first


def _nameless(block: Block) -> Block:
    """Return a block as it is whatever its layers are called."""
    up, down = (replace(weight, name="") for weight in (block.gate_up, block.down))
    shared = block.shared
    if shared is not None:
        shared = replace(shared[0], name=""), replace(shared[1], name="")
    return replace(block, gate_up=up, down=down, shared=shared)
