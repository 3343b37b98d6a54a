"""Two small models with random weights, quantised: ours against the same weights in fp16.

    python -m ferrum_numba.perf.models --model llama --layers 2 --tokens 128

makes a Llama and a Qwen3-MoE from configs alone, quantises their checkpoints, and puts our layers
in the place of theirs. On a GPU they have the widths of Llama-3-8B and Qwen3-30B-A3B; it prints how
far the logits are from those of the dequantised weights, tokens/s of generating in a CUDA graph,
and what of a layer's time is products. Without one they are tiny, and only logits are compared, by
the reference. It needs torch and transformers 5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.errors import FerrumError, ProblemError
from ferrum_numba.gptq.checkpoint import GptqCheckpoint
from ferrum_numba.gptq.quantize import Recipe, quantize_checkpoint
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.reference import gptq

if TYPE_CHECKING:
    import torch

PROMPT_TOKENS = 32
VOCABULARY = 1024
# steps before a capture
WARM_UP = 3
TIMED_REPLAYS = 20
# widths of the models' own, and such as the reference multiplies in a second
WIDE = {
    "llama": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen3-moe": {
        "hidden_size": 2048, "moe_intermediate_size": 768, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 32, "num_experts_per_tok": 8,
    },
}  # fmt: skip
TINY = {
    "llama": {
        "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "qwen3-moe": {
        "hidden_size": 128, "moe_intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
    },
}  # fmt: skip
MODELS = tuple(TINY)
GROUP_SIZE = {"cpu": 64, "cuda": 128}


@dataclass(frozen=True)
class Pair:
    """A model of our layers, and the same of dequantised ones."""

    ours: Any
    dense: Any


@dataclass(frozen=True)
class Decoding:
    """A model's decode step, captured.

    tokens: what it generated after the prompt
    step_us: device time of a step
    """

    tokens: list[int]
    step_us: float


def config_of(name: str, num_layers: int, widths: dict[str, dict[str, int]]) -> Any:
    """Return a model's config.

    Raises:
        ProblemError: transformers is not here.
    """
    try:
        import transformers
    except ImportError:
        raise ProblemError(
            "models are transformers', which is not here; pip install transformers"
        ) from None
    kinds = {"llama": transformers.LlamaConfig, "qwen3-moe": transformers.Qwen3MoeConfig}
    return kinds[name](
        vocab_size=VOCABULARY, num_hidden_layers=num_layers, max_position_embeddings=2048,
        tie_word_embeddings=False, **widths[name],
    )  # fmt: skip


def new_model(config: Any, device: str) -> Any:
    """Return a model of random weights, the same in every run."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        return model.eval()


def make_pair(config: Any, device: str, folder: Path) -> Pair:
    """Return a model of our layers and one of the same weights dequantised, by a checkpoint."""
    from ferrum_numba.torch import replace_linears

    dense = new_model(config, device)
    dense.save_pretrained(folder / "model")
    quantize_checkpoint(folder / "model", folder / "quantised", Recipe(GROUP_SIZE[device]))
    ours = new_model(config, device)
    # the experts' own loop waits for the GPU, which a graph cannot
    dense.set_experts_implementation("batched_mm")
    with GptqCheckpoint.open(folder / "quantised") as checkpoint:
        replace_linears(ours, checkpoint)
        dequantise(dense, checkpoint)
    return Pair(ours, dense)


def dequantise(model: Any, checkpoint: GptqCheckpoint) -> None:
    """Give a model's linear layers and experts the weights that a checkpoint's codes stand for."""
    import torch

    places = dict(model.named_parameters())
    for name in checkpoint.names:
        weight = torch.from_numpy(plain_weight(checkpoint.linear(name)))
        with torch.no_grad():
            place_of(places, name).copy_(weight)


def place_of(places: dict[str, Any], name: str) -> torch.Tensor:
    """Return where a layer's weight [N, K] is: a linear layer's, or part of a stack of experts."""
    if f"{name}.weight" in places:
        found: torch.Tensor = places[f"{name}.weight"]
        return found
    block, expert, projection = name.rsplit(".", 2)
    if projection == "down_proj":
        return places[f"{block}.down_proj"][int(expert)]
    gate, up = places[f"{block}.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up


def plain_weight(layer: GptqTensors) -> Any:
    """Return a layer's weight [N, K], exactly what its kernels multiply by, in float32."""
    tensors = layer.qweight, layer.scales, layer.qzeros, layer.g_idx
    return gptq.dequantize(*tensors, layer.checkpoint_format).T


def logits_apart(pair: Pair, device: str) -> str:
    """Return how far the logits of a prompt are from those of the dequantised weights."""
    import torch

    tokens = prompt(device)
    with torch.inference_mode():
        got, want = (model(tokens).logits.float() for model in (pair.ours, pair.dense))
    same = (got.argmax(-1) == want.argmax(-1)).float().mean()
    return (
        f"largest logit difference {(got - want).abs().max():.4f} "
        f"of logits up to {want.abs().max():.2f}; the same next token at {same:.0%} of places"
    )


def prompt(device: str) -> torch.Tensor:
    """Return [1, PROMPT_TOKENS] of random tokens, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (1, PROMPT_TOKENS), generator=generator).to(device)


class Decoder:
    """A model's greedy decode step, captured in a CUDA graph after the prompt."""

    def __init__(self, model: Any, num_tokens: int) -> None:
        import torch
        from transformers import StaticCache

        # the capture's warm-up goes beyond the prompt too
        length = PROMPT_TOKENS + num_tokens + 2 * WARM_UP
        self._model, self._cache = model, StaticCache(model.config, max_cache_len=length)
        self._token = torch.zeros((1, 1), dtype=torch.int64, device="cuda")
        self._position = torch.zeros((1, 1), dtype=torch.int64, device="cuda")
        self._prefill()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()

    def generate(self, num_tokens: int) -> Decoding:
        """Return the tokens after the prompt, and what a step took."""
        import torch

        self._prefill()
        tokens = [self._token.clone()]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(num_tokens):
            self._graph.replay()
            tokens.append(self._token.clone())
        end.record()
        end.synchronize()
        step_us = begin.elapsed_time(end) * 1e3 / num_tokens
        return Decoding([int(token) for token in tokens], step_us)

    def _prefill(self) -> None:
        self._cache.reset()
        self._position.fill_(PROMPT_TOKENS)
        logits = self._model(prompt("cuda"), past_key_values=self._cache).logits
        self._token.copy_(logits[:, -1:].argmax(-1))

    def _step(self) -> None:
        logits = self._model(
            self._token, position_ids=self._position, past_key_values=self._cache
        ).logits
        self._token.copy_(logits[:, -1:].argmax(-1))
        self._position.add_(1)


def kernels_us(model: Any) -> float:
    """Return the device time of one decode step's calls of our layers alone, in one graph."""
    calls: list[Callable[[], Any]] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        # as in a graph, where nobody waits for the experts' numbers of rows
        there = [x.cuda() for x in inputs]
        calls.append(lambda: type(module).forward(module, *there))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if is_kernels(m)]
    model(prompt("cuda")[:, :1])
    for hook in hooks:
        hook.remove()
    return graph_us(calls)


def is_kernels(module: Any) -> bool:
    """Tell whether a module's call is products: ours, torch's own, or a block of experts'."""
    import torch

    from ferrum_numba.torch import GatedExperts, MarlinLinear

    stacked = isinstance(getattr(module, "down_proj", None), torch.nn.Parameter)
    return stacked or isinstance(module, MarlinLinear | GatedExperts | torch.nn.Linear)


def graph_us(calls: Sequence[Callable[[], Any]]) -> float:
    """Return the device time of calls, captured one after the other."""
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(TIMED_REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / TIMED_REPLAYS


def decoded(pair: Pair, num_layers: int, num_tokens: int) -> Iterator[str]:
    """Yield what generating in a CUDA graph took, of both models."""
    import torch

    found = {}
    with torch.inference_mode():
        for name, model in (("ours", pair.ours), ("fp16", pair.dense)):
            found[name] = Decoder(model, num_tokens).generate(num_tokens)
            step_us, products_us = found[name].step_us, kernels_us(model)
            yield (
                f"{name}: {1e6 / step_us:.0f} tokens/s; a layer {step_us / num_layers:.1f} us, "
                f"the head among them, of which products {products_us / num_layers:.1f} us"
            )
    alike = [a == b for a, b in zip(found["ours"].tokens, found["fp16"].tokens, strict=True)]
    first = alike.index(False) if False in alike else len(alike)
    yield f"the first {first} of {len(alike)} generated tokens are the same"


def main(words: Sequence[str] | None = None) -> None:
    """Compare the models that were asked for, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--layers", type=int, default=2, help="of the model")
    parser.add_argument("--tokens", type=int, default=128, help="that are generated")
    args = parser.parse_args(words)
    try:
        import torch
    except ImportError:
        raise ProblemError("models are torch's, which is not here; pip install torch") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in MODELS if args.model == "both" else (args.model,):
        config = config_of(name, args.layers, WIDE if device == "cuda" else TINY)
        with tempfile.TemporaryDirectory() as folder:
            pair = make_pair(config, device, Path(folder))
        print(f"{name}, {args.layers} layers on {device}: {logits_apart(pair, device)}", flush=True)
        if device == "cuda":
            for line in decoded(pair, args.layers, args.tokens):
                print(f"  {line}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"models: {error}", file=sys.stderr)
        sys.exit(2)
