"""Tiny checkpoints by the exporters themselves, each layer of which is read here to the last bit.

    python exporters.py make EXPORTER FOLDER    in an environment with that exporter
    python exporters.py compare FOLDER          in this project's; prints a line a checkpoint

`exporters.sh` makes the environments and does both. A checkpoint `FOLDER/NAME` has what its
exporter makes of a layer beside it, `FOLDER/NAME.want`: W [N, K] by the exporter's own code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEXTS = [
    f"the quick brown fox number {i} jumps over the lazy dog again and again" for i in range(64)
]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
         "max_position_embeddings": 256}  # fmt: skip


def model_folder(folder: Path, moe: bool = False) -> Path:
    """Write a Llama, or a Qwen3-MoE, of random weights with a tokenizer; return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    path = folder / ("source-moe" if moe else "source")
    if path.exists():
        return path
    torch.manual_seed(0)
    if moe:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, head_dim=32))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.to(torch.float16).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = trainers.WordLevelTrainer(vocab_size=512, special_tokens=["<unk>", "</s>"])
    tokenizer.train_from_iterator(TEXTS, words)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(path)
    return path


def want(folder: Path, name: str, weights: dict[str, Any]) -> None:
    """Write what an exporter makes of its layers: name -> W [N, K]."""
    from safetensors.torch import save_file

    tensors = {layer: weight.detach().contiguous().cpu() for layer, weight in weights.items()}
    save_file(tensors, folder / f"{name}.want")


def make_gptqmodel(folder: Path) -> None:
    """GPTQ in its kinds."""
    import os

    import torch

    # of fewer it makes a pool that it then asks for more threads than it has
    os.cpu_count = lambda: max(4, len(os.sched_getaffinity(0)))
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    kinds: dict[str, dict[str, Any]] = {
        "sym": {}, "asym": {"sym": False}, "v2": {"sym": False, "format": "gptq_v2"},
        "planar": {"sym": False, "format": "gptq_p"},
        "channel": {"group_size": -1, "act_group_aware": False},
        "act-order": {"desc_act": True, "sym": False}, "moe": {},
    }  # fmt: skip
    for kind, options in kinds.items():
        name = f"gptqmodel-{kind}"
        if (folder / f"{name}.want").exists():
            continue
        source = model_folder(folder, kind == "moe")
        config = QuantizeConfig(**({"bits": 4, "group_size": 32} | options))
        model = GPTQModel.load(str(source), config)
        model.quantize(TEXTS, batch_size=1, calibration_data_min_length=1)
        model.save(str(folder / name))
        loaded = GPTQModel.load(
            str(folder / name), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16
        )
        weights = {
            layer: module.dequantize_weight().T
            for layer, module in loaded.model.named_modules()
            if hasattr(module, "dequantize_weight")
        }
        want(folder, name, weights)


def make_auto_round(folder: Path) -> None:
    """Each of its packings."""
    from auto_round import AutoRound

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "sym": ("auto_round", {}), "asym": ("auto_round", {"sym": False}),
        "awq": ("auto_round:auto_awq", {"sym": False}),
        "gptq": ("auto_round:auto_gptq", {}),
        "auto_gptq": ("auto_gptq", {}), "auto_awq": ("auto_awq", {"sym": False}),
        "llm_compressor": ("llm_compressor", {}),
        "moe": ("auto_round", {}),
    }  # fmt: skip
    for kind, (form, options) in kinds.items():
        name = f"auto_round-{kind}"
        source = model_folder(folder, kind == "moe")
        rounder = AutoRound(
            str(source), iters=0, disable_opt_rtn=True, device_map="cpu",
            **({"bits": 4, "group_size": 32, "sym": True} | options),
        )  # fmt: skip
        rounder.quantize_and_save(str(folder / name), format=form)
        # some formats get a folder of their own, with the scheme in its name
        (config,) = (folder / name).rglob("config.json")
        if config.parent != folder / name:
            config.parent.rename(folder / "inner")
            (folder / name).rmdir()
            (folder / "inner").rename(folder / name)
        want(folder, name, dict(unpacked_by_torch(folder / name)))


def make_llmcompressor(folder: Path) -> None:
    """pack-quantized in its kinds."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    kinds: dict[str, dict[str, Any]] = {
        "sym": {"symmetric": True, "strategy": "group", "group_size": 32},
        "asym": {"symmetric": False, "strategy": "group", "group_size": 32},
        "channel": {"symmetric": True, "strategy": "channel"},
    }
    for kind, args in kinds.items():
        name = f"llmcompressor-{kind}"
        model = AutoModelForCausalLM.from_pretrained(model_folder(folder), dtype="float16")
        scheme = QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=4, type="int", **args)
        )
        recipe = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
        oneshot(model=model, recipe=recipe)
        model.save_pretrained(folder / name, save_compressed=True)
        want(folder, name, dict(decompressed(folder / name)))


def decompressed(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield layers of a compressed-tensors checkpoint by its own decompressor."""
    import json

    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    config = json.loads((path / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for layer, tensors in by_layer(path, "weight_packed"):
        yield layer, compressor.decompress(tensors, scheme)["weight"]


def unpacked_by_torch(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield layers of an auto-round checkpoint by the classes that it packs them with."""
    import json

    import torch
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    config = json.loads((path / "config.json").read_text())["quantization_config"]
    if "config_groups" in config:
        yield from decompressed(path)
        return
    packing = config.get("packing_format", config["quant_method"])
    for layer, tensors in by_layer(path, "qweight"):
        size = config["group_size"]
        if "awq" in packing:
            weight = dequantize_gemm(
                tensors["qweight"], tensors["qzeros"], tensors["scales"], 4, size
            ).T
        else:
            kind = qlinear_torch if packing == "auto_round" else qlinear_torch_zp
            K, N = 8 * len(tensors["qweight"]), tensors["qweight"].shape[1]
            linear = kind.QuantLinear(4, size, K, N, bias=False)
            linear.qweight, linear.qzeros = tensors["qweight"], tensors["qzeros"]
            linear.scales = tensors["scales"]
            # a product with the identity is the weight: one term of each sum is not 0
            weight = linear(torch.eye(K, dtype=torch.float16)).T
        yield layer, weight


def by_layer(path: Path, maker: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the layers that have a tensor of this name, with all of their tensors."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
    for name in tensors:
        if name.endswith(f".{maker}"):
            layer = name.removesuffix(f".{maker}")
            start = f"{layer}."
            yield (
                layer,
                {
                    key.removeprefix(start): tensor
                    for key, tensor in tensors.items()
                    if key.startswith(start)
                },
            )


def make_optimum(folder: Path) -> None:
    """GPTQ through optimum, whose two configs differ."""
    import torch
    from optimum.gptq import GPTQQuantizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for kind, options in {"sym": {}, "asym": {"sym": False}}.items():
        name = f"optimum-{kind}"
        source = model_folder(folder)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
        tokenizer = AutoTokenizer.from_pretrained(source)
        quantizer = GPTQQuantizer(bits=4, group_size=32, dataset=TEXTS, model_seqlen=64, **options)
        quantizer.quantize_model(model, tokenizer)
        weights = {
            layer: module.dequantize_weight().T
            for layer, module in model.named_modules()
            if hasattr(module, "dequantize_weight")
        }
        quantizer.save(model, str(folder / name))
        want(folder, name, weights)


def make_autoawq(folder: Path) -> None:
    """AutoAWQ's layouts by its classes; its quantiser needs a GPU."""
    import json

    import torch
    from awq.models._config import AwqConfig
    from awq.modules.linear import WQLinear_GEMM, WQLinear_GEMV, WQLinear_GEMVFast, WQLinear_Marlin
    from safetensors.torch import save_file

    K, N, size = 256, 128, 64
    torch.manual_seed(0)
    classes = {"gemm": WQLinear_GEMM, "gemv": WQLinear_GEMV, "gemv_fast": WQLinear_GEMVFast,
               "marlin": WQLinear_Marlin}  # fmt: skip
    for version, kind in classes.items():
        codes = torch.randint(0, 16, (N, K))
        zeros = torch.randint(0, 16, (N, K // size))
        if version == "marlin":
            zeros = torch.full_like(zeros, 8)
        scales = torch.empty(N, K // size).uniform_(0.005, 0.015).half()
        exact = scales.float().repeat_interleave(size, 1) * (
            codes - zeros.repeat_interleave(size, 1)
        )
        linear = torch.nn.Linear(K, N, bias=False)
        linear.weight.data = exact
        given = {"scales": scales, "zeros": zeros}
        if version == "gemm":
            given = {name: tensor.T.contiguous() for name, tensor in given.items()}
        elif version == "marlin":
            given["zeros"] = None
            linear.weight.data = exact.half()
        packed = kind.from_linear(linear, 4, size, **given)
        path = folder / f"autoawq-{version}"
        path.mkdir()
        stored = {f"layer.{name}": tensor for name, tensor in packed.state_dict().items()}
        save_file(stored, path / "model.safetensors")
        config = AwqConfig(q_group_size=size, version=version, zero_point=version != "marlin")
        (path / "quant_config.json").write_text(json.dumps(config.to_dict()))
        section = {"quantization_config": config.to_transformers_dict()}
        (path / "config.json").write_text(json.dumps(section))
        want(folder, path.name, {"layer": exact})


MAKERS: dict[str, Callable[[Path], None]] = {
    "gptqmodel": make_gptqmodel, "auto_round": make_auto_round, "optimum": make_optimum,
    "llmcompressor": make_llmcompressor, "autoawq": make_autoawq,
}  # fmt: skip


def compare(folder: Path) -> int:
    """Print what became of each checkpoint; return how many are not right."""
    wrong = 0
    for path in sorted(folder.glob("*.want")):
        name = path.name.removesuffix(".want")
        said = compared(folder / name, path)
        wrong += not said.startswith("right")
        print(f"{name:32} {said}")
    return wrong


def compared(place: Path, path: Path) -> str:
    """Return "right" and how many layers, or which differ and how."""
    import numpy as np
    from safetensors import safe_open

    from ferrum_numba import FerrumError, GptqCheckpoint
    from ferrum_numba.reference.gptq import dequantize

    try:
        with GptqCheckpoint.open(place) as checkpoint, safe_open(path, "numpy") as wanted:
            names = checkpoint.names
            missing = set(wanted.keys()) ^ set(names)
            if missing:
                return f"WRONG: {sorted(missing)[:3]} are on one side only"
            for name in names:
                layer = checkpoint.linear(name)
                group = layer.g_idx
                if group is None:
                    group = np.arange(layer.in_features) // layer.group_size
                got = dequantize(
                    layer.qweight, layer.scales, layer.qzeros, group, layer.checkpoint_format
                )
                theirs = wanted.get_tensor(name)
                # an exporter that computes in 16 bits rounds the product once
                if not np.array_equal(got.T.astype(theirs.dtype), theirs):
                    error = np.abs(got.T - theirs.astype(np.float32)).max()
                    return f"WRONG: {name} differs by {error:.3g}"
    except FerrumError as error:
        return f"refused: {error}"
    return f"right, {len(names)} layers" if names else "WRONG: no layer is quantised"


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "make":
        target = Path(arguments[1])
        target.mkdir(parents=True, exist_ok=True)
        MAKERS[arguments[0]](target)
    else:
        sys.exit(compare(Path(arguments[0])))
