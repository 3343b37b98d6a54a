"""Layers to test with: random weights of every kind, and the reference on their own tensors."""

from dataclasses import replace

import numpy as np

from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.reference import gptq, w4a16_gemm

NAME = "model.layers.0.mlp.down_proj"


def words(rng, shape):
    """Return random int32 words: eight codes of every value."""
    return rng.integers(0, 2**32, shape, np.uint32).view(np.int32)


def layer(
    K, N, group_size=64, *, zeros=None, act_order=False, bias=False, dtype=np.float16, seed=0,
    name=NAME,
):  # fmt: skip
    """Return a layer; zeros: None for a symmetric one, or the format that stores them."""
    rng = np.random.default_rng(seed)
    rows = K if group_size == -1 else group_size
    G = -(-K // rows)
    return GptqTensors.make(
        name,
        words(rng, (K // 8, N)),
        rng.uniform(0.005, 0.015, (G, N)).astype(dtype),
        None if zeros is None else words(rng, (G, N // 8)),
        rng.permutation(np.arange(K, dtype=np.int32) // rows) if act_order else None,
        rng.standard_normal(N).astype(dtype) if bias else None,
        group_size=group_size,
        sym=zeros is None,
        desc_act=act_order,
        checkpoint_format=zeros or "gptq",
    )


def rows(M, K, dtype="fp16", seed=1):
    """Return random activations."""
    x = np.random.default_rng(seed).standard_normal((M, K), np.float32)
    return x.astype(DTYPES[dtype])


def reference(tensors, x, dtype="fp16", bias=True):
    """Return x times the layer, by the reference on the checkpoint's own tensors."""
    zeros = tensors.qzeros
    if zeros is not None:
        zeros = gptq.unpack_zero_points(zeros, tensors.checkpoint_format)
    g_idx = tensors.g_idx
    if g_idx is None:
        g_idx = np.arange(tensors.in_features, dtype=np.int32) // np.int32(tensors.group_size)
    kind = DTYPES[dtype]
    added = None if tensors.bias is None or not bias else tensors.bias.astype(kind)
    codes = gptq.unpack_codes(tensors.qweight)
    return w4a16_gemm(x, codes, tensors.scales.astype(kind), zeros, g_idx, added)


def some_columns(tensors, columns):
    """Return the layer of a few columns, a multiple of 8 of them."""
    zeros = tensors.qzeros
    if zeros is not None:
        found = gptq.unpack_zero_points(zeros, tensors.checkpoint_format)[:, columns]
        zeros = gptq.pack_zero_points(found, tensors.checkpoint_format)
    return replace(
        tensors,
        qweight=tensors.qweight[:, columns],
        scales=tensors.scales[:, columns],
        qzeros=zeros,
        bias=None if tensors.bias is None else tensors.bias[columns],
    )


def assert_close(got, want, dtype="fp16"):
    """Compare with the bounds of the Op: two roundings to the type on top of an fp32 sum."""
    tolerance = OP.tolerance(W4A16Problem(1, 8, 8, dtype=dtype, group_size=8))
    result = tolerance.compare(got, want)
    assert result.ok, result.message
