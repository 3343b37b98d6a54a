"""Quantised layers and checkpoints written by the formulas of the formats, word by word.

Nothing here is shared with the code under test: the packers are loops over the closed forms.
"""

import json
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ferrum_numba.reference.gptq import dequantize

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}


def words(nibbles, order=range(8)):
    """Return [...] int32 of [..., 8]: nibble i of a word is element order[i]."""
    total = np.zeros(nibbles.shape[:-1], np.int64)
    for i, element in enumerate(order):
        total += nibbles[..., element].astype(np.int64) << 4 * i
    return total.astype(np.uint32).view(np.int32)


def pack_rows(codes):
    """Return qweight [K/8, N] of codes [K, N]."""
    K, N = codes.shape
    return words(codes.reshape(K // 8, 8, N).transpose(0, 2, 1))


def pack_columns(values, order=range(8)):
    """Return [R, N/8] of values [R, N]."""
    return words(values.reshape(len(values), -1, 8), order)


def pack_zeros(zeros, checkpoint_format):
    """Return qzeros [G, N/8]; v1 takes 0x11111111 from each word, borrows and all."""
    packed = pack_columns(zeros)
    if checkpoint_format == "gptq_v2":
        return packed
    less = [(int(word) - 0x11111111) % 2**32 for word in packed.view(np.uint32).flat]
    return np.array(less, np.uint32).view(np.int32).reshape(packed.shape)


def pack_marlin(codes):
    """Return B [K/16, 2N] by the closed form."""
    K, N = codes.shape
    B = np.zeros((K // 16, 2 * N), np.uint32)
    kt, nb, lane, j, p = np.ix_(*(np.arange(n) for n in (K // 16, N // 64, 32, 4, 8)))
    half, sel = p >> 2, p & 3
    k = 16 * kt + 2 * (lane & 3) + half + 8 * (sel & 1)
    n = 64 * nb + 16 * j + 8 * (sel >> 1) + (lane >> 2)
    nibbles = codes[k, n].astype(np.uint32) << (4 * p).astype(np.uint32)
    B[:] = nibbles.sum(axis=-1, dtype=np.uint32).reshape(K // 16, 2 * N)
    return B.view(np.int32)


def permute_marlin_scales(scales):
    """Return s [G, N]: within 64 columns if grouped, else within 32."""
    G, N = scales.shape
    s = np.empty_like(scales)
    pairs = (0, 1, 8, 9, 16, 17, 24, 25)
    for n in range(N):
        i, m = divmod(n % 64, 8) if G > 1 else divmod(n % 32, 8)
        source = n // 64 * 64 + i + 8 * m if G > 1 else n // 32 * 32 + 2 * i + pairs[m]
        s[:, n] = scales[:, source]
    return s


def padded(values, multiple):
    """Return [multiple of `multiple`, ...] of [n, ...], zeros last."""
    more = -len(values) % multiple
    return np.pad(values, ((0, more), *(((0, 0),) * (values.ndim - 1))))


def pack_gemv_fast(codes):
    """Return qweight [N/4, K] int16: nibble by nibble, by the closed form."""
    K, N = codes.shape
    packed = np.zeros((N // 4, K), np.uint16)
    for k in range(K):
        block, half, row = k // 64, k % 64 // 32, k % 32
        a, b, c = row // 8, row % 8 // 2, row % 2
        for n in range(N):
            word = 64 * block + 16 * (n % 4) + 8 * half + 2 * b + c
            packed[n // 4, word] |= int(codes[k, n]) << 4 * a
    return packed.view(np.int16)


@dataclass
class Layer:
    """What a layer means, before any packing."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    group: np.ndarray
    group_size: int
    bias: np.ndarray | None = None

    @property
    def weight(self):
        zeros = self.zeros[self.group].astype(np.float32)
        return self.scales.astype(np.float32)[self.group] * (self.codes - zeros)

    def gptq(self, checkpoint_format="gptq", g_idx=True):
        """Return the tensors of a GPTQ layer, by the last part of their names."""
        tensors = {
            "qweight": pack_rows(self.codes),
            "scales": self.scales,
            "qzeros": pack_zeros(self.zeros, checkpoint_format),
        }
        if g_idx:
            tensors["g_idx"] = self.group
        return self._with_bias(tensors)

    def awq(self):
        """Return the tensors of an AWQ layer."""
        tensors = {
            "qweight": pack_columns(self.codes, AWQ_ORDER),
            "scales": self.scales,
            "qzeros": pack_columns(self.zeros, AWQ_ORDER),
        }
        return self._with_bias(tensors)

    def marlin(self):
        """Return the tensors of a legacy Marlin layer."""
        tensors = {"B": pack_marlin(self.codes), "s": permute_marlin_scales(self.scales)}
        return self._with_bias(tensors)

    def awq_marlin(self):
        """Return the tensors of a layer of AutoAWQ's `version: marlin`."""
        tensors = self.marlin()
        return {"qweight": tensors.pop("B"), "scales": tensors.pop("s")} | tensors

    def gemv(self, width=1):
        """Return the tensors of a layer of AutoAWQ's "gemv", its groups padded to 8 * width."""
        scales, zeros = padded(self.scales, 8 * width).T, padded(self.zeros, 8 * width).T
        tensors = {
            "qweight": pack_columns(self.codes.T),
            "scales": np.ascontiguousarray(scales),
            "qzeros": pack_columns(zeros),
        }
        return self._with_bias(tensors)

    def gemv_fast(self, width=1, zeros="qzeros"):
        """Return the tensors of a layer of AutoAWQ's "gemv_fast"."""
        scaled = -(self.scales.astype(np.float32) * self.zeros).astype(self.scales.dtype)
        tensors = {
            "qweight": pack_gemv_fast(self.codes),
            "scales": padded(self.scales, 8 * width),
            zeros: padded(scaled, 8 * width),
        }
        return self._with_bias(tensors)

    def compressed(self, sym=False, g_idx=False):
        """Return the tensors of a layer of compressed-tensors' "pack-quantized"."""
        K, N = self.codes.shape
        tensors = {
            "weight_packed": pack_columns(self.codes.T),
            "weight_scale": np.ascontiguousarray(self.scales.T),
            "weight_shape": np.array([N, K], np.int64),
        }
        if not sym:
            zeros = padded(self.zeros.T, 8)
            tensors["weight_zero_point"] = pack_rows(zeros)
        if g_idx:
            tensors["weight_g_idx"] = self.group
        return self._with_bias(tensors)

    def _with_bias(self, tensors):
        return tensors if self.bias is None else tensors | {"bias": self.bias}


def make(rng, K=64, N=64, group_size=32, *, sym=False, act_order=False, bias=False, dtype="fp16"):
    """Return a random layer; every zero point, 0 among them, where it is not symmetric."""
    rows = K if group_size == -1 else min(group_size, K)
    group = np.arange(K, dtype=np.int32) // np.int32(rows)
    G = int(group[-1]) + 1
    zeros = np.full((G, N), 8, np.uint8) if sym else rng.integers(0, 16, (G, N), dtype=np.uint8)
    return Layer(
        codes=rng.integers(0, 16, (K, N), dtype=np.uint8),
        scales=rng.uniform(0.005, 0.015, (G, N)).astype(DTYPES[dtype]),
        zeros=zeros,
        group=rng.permutation(group) if act_order else group,
        group_size=rows,
        bias=rng.standard_normal(N).astype(DTYPES[dtype]) if bias else None,
    )


def beside(*layers):
    """Return the layer whose columns are those of these, in order."""
    joined = {
        field: np.concatenate([getattr(layer, field) for layer in layers], axis=1)
        for field in ("codes", "scales", "zeros")
    }
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return replace(layers[0], **joined, bias=np.concatenate(biases) if biases else None)


def weight_of(tensors):
    """Return [K, N] float32 of what was loaded, by the reference."""
    group = tensors.g_idx
    if group is None:
        group = np.arange(tensors.in_features) // tensors.group_size
    return dequantize(
        tensors.qweight, tensors.scales, tensors.qzeros, group, tensors.checkpoint_format
    )


def check(tensors, layer):
    """Assert that what was loaded is this layer, to the bit."""
    np.testing.assert_array_equal(weight_of(tensors), layer.weight)
    np.testing.assert_array_equal(tensors.qweight, pack_rows(layer.codes))
    assert tensors.scales.dtype == layer.scales.dtype
    assert tensors.group_size == layer.group_size
    if layer.bias is None:
        assert tensors.bias is None
    else:
        np.testing.assert_array_equal(tensors.bias, layer.bias)


def named(layers):
    """Return {"a.qweight": ...} of {"a": {"qweight": ...}}."""
    return {
        f"{name}.{part}": array for name, parts in layers.items() for part, array in parts.items()
    }


def write(folder, layers, config=None, file="model.safetensors", **more):
    """Write a checkpoint's folder of {layer: {tensor: array}} and more tensors; return its path."""
    folder.mkdir(exist_ok=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in (named(layers) | more).items()}
    save_file(tensors, folder / file)
    if config is not None:
        (folder / "quantize_config.json").write_text(json.dumps(config))
    return folder


def write_sharded(folder, shards, config):
    """Write {file: {layer: {tensor: array}}} with an index."""
    weight_map = {}
    for file, layers in shards.items():
        write(folder, layers, config, file)
        weight_map |= dict.fromkeys(named(layers), file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    """Write an index that says where tensors are."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
