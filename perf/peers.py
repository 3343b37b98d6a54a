"""Other people's kernels on the same GPU: the times to beat, as tables for the report.

Times are microseconds a call on one H200, fp16 activations, int4 weights, group 128. Calls were
captured in one CUDA graph, the weights rotated over more than 210 MB (cold), and each output
checked against fp32 (relative error of at most 5e-4, tinygemm 2e-3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DATE = "2026-11-22"
GROUP_SIZE = 128
# who was measured; a cell keeps the fastest of them
DENSE_PEERS = (
    "vLLM gptq_marlin", "Machete", "TurboMind sm_90", "CUTLASS example 55",
    "humming-kernels 0.1.19", "torch tinygemm", "a tuned Triton W4A16",
)  # fmt: skip
# of the same run: what the board can do
BOARD = {
    "read_gbps": 4400.0, "bulk_read_gbps": 4450.0, "copy_gbps": 4260.0, "write_gbps": 4020.0,
    "cublas_f16_tflops": 741.0, "cublas_bf16_tflops": 770.0, "graph_node_us": 0.54,
}  # fmt: skip

_ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# (K, N): plain read of the packed weights in us; then for each M: best 4-bit us, whose, cuBLAS us
# fmt: off
_DENSE = {
    (4096, 4096): (3.85, (
        (6.5, "tinygemm", 12.8),
        (8.6, "TurboMind", 12.8),
        (8.7, "TurboMind", 12.8),
        (8.8, "TurboMind", 12.6),
        (10.4, "TurboMind", 12.8),
        (11.6, "TurboMind", 11.7),
        (15.6, "TurboMind", 14.0),
        (21.8, "humming", 17.2),
        (27.6, "CUTLASS ex.55", 26.5),
        (49.2, "CUTLASS ex.55", 49.0),
        (92.9, "CUTLASS ex.55", 100.4),
        (202.2, "CUTLASS ex.55", 209.6),
    )),
    (4096, 14336): (8.86, (
        (15.6, "TurboMind", 31.1),
        (14.7, "humming", 30.9),
        (14.6, "humming", 30.9),
        (15.4, "TurboMind", 31.0),
        (18.1, "TurboMind", 31.5),
        (22.3, "CUTLASS ex.55", 32.2),
        (26.9, "CUTLASS ex.55", 33.8),
        (47.3, "machete", 48.9),
        (94.3, "machete", 104.0),
        (173.3, "machete", 173.0),
        (340.7, "CUTLASS ex.55", 376.8),
        (738.1, "CUTLASS ex.55", 740.7),
    )),
    (14336, 4096): (8.84, (
        (15.9, "humming", 33.3),
        (15.2, "humming", 33.1),
        (15.4, "humming", 35.3),
        (16.9, "humming", 33.2),
        (20.8, "humming", 34.3),
        (22.2, "humming", 35.1),
        (30.7, "humming", 38.1),
        (52.1, "humming", 54.4),
        (90.0, "CUTLASS ex.55", 88.4),
        (163.0, "CUTLASS ex.55", 180.1),
        (345.6, "CUTLASS ex.55", 355.4),
        (718.4, "CUTLASS ex.55", 737.2),
    )),
    (8192, 8192): (9.62, (
        (16.2, "vLLM Marlin", 39.3),
        (15.9, "vLLM Marlin", 39.7),
        (15.9, "vLLM Marlin", 39.5),
        (16.9, "TurboMind", 34.3),
        (20.4, "TurboMind", 34.8),
        (25.0, "humming", 36.1),
        (33.7, "humming", 37.2),
        (53.5, "CUTLASS ex.55", 53.3),
        (91.7, "CUTLASS ex.55", 109.8),
        (194.8, "humming", 215.5),
        (400.1, "machete", 409.0),
        (830.4, "CUTLASS ex.55", 880.5),
    )),
    (8192, 28672): (29.08, (
        (40.4, "humming", 119.1),
        (38.8, "humming", 119.5),
        (40.8, "humming", 120.5),
        (44.1, "TurboMind", 116.1),
        (55.3, "machete", 117.1),
        (71.9, "humming", 119.5),
        (96.1, "machete", 129.5),
        (186.3, "machete", 206.1),
        (353.6, "machete", 365.1),
        (706.5, "CUTLASS ex.55", 749.2),
        (1407.5, "CUTLASS ex.55", 1480.8),
        (2868.3, "CUTLASS ex.55", 3224.9),
    )),
    (28672, 8192): (29.08, (
        (37.2, "humming", 116.3),
        (36.5, "humming", 117.1),
        (38.8, "humming", 117.7),
        (44.2, "TurboMind", 118.7),
        (56.6, "TurboMind", 120.4),
        (70.6, "humming", 125.5),
        (102.8, "machete", 138.2),
        (178.4, "machete", 184.1),
        (340.7, "CUTLASS ex.55", 375.3),
        (686.8, "CUTLASS ex.55", 721.0),
        (1404.6, "machete", 1454.4),
        (2847.7, "CUTLASS ex.55", 3122.0),
    )),
}

# (layer, tokens): experts hit; best 4-bit us, whose; fused Marlin, a Marlin launch an expert, and
# a cuBLAS fp16 launch an expert, in us
_MOE = {
    ("qwen3_gate_up", 1): (8, (9.7, "humming"), 10.8, 78.8, 63.9),
    ("qwen3_gate_up", 16): (79, (43.4, "humming"), 44.9, 770.4, 618.1),
    ("qwen3_gate_up", 64): (127, (63.8, "humming"), 63.8, 1259.0, 956.4),
    ("qwen3_gate_up", 256): (128, (74.7, "humming"), 116.6, 1430.4, 757.4),
    ("qwen3_gate_up", 1024): (128, (130.9, "humming"), 274.0, 2731.8, 801.8),
    ("qwen3_gate_up", 4096): (128, (418.3, "humming"), 854.2, 3617.7, 890.5),
    ("qwen3_down", 1): (8, (7.2, "vllm"), 7.2, 48.7, 33.7),
    ("qwen3_down", 16): (79, (26.7, "vllm"), 26.7, 484.7, 334.0),
    ("qwen3_down", 64): (127, (36.9, "humming"), 37.7, 781.9, 539.0),
    ("qwen3_down", 256): (128, (45.7, "humming"), 68.7, 896.1, 557.7),
    ("qwen3_down", 1024): (128, (76.8, "humming"), 168.1, 1699.4, 583.0),
    ("qwen3_down", 4096): (128, (229.6, "humming"), 505.8, 2387.3, 651.2),
    ("mixtral_gate_up", 1): (2, (42.6, "humming"), 42.9, 52.9, 123.5),
    ("mixtral_gate_up", 16): (8, (137.4, "humming"), 148.6, 212.9, 462.2),
    ("mixtral_gate_up", 64): (8, (166.7, "humming"), 261.4, 251.9, 485.1),
    ("mixtral_gate_up", 256): (8, (285.8, "humming"), 534.3, 448.2, 502.0),
    ("mixtral_gate_up", 1024): (8, (1057.4, "humming"), 2035.3, 1519.6, 814.9),
    ("mixtral_gate_up", 4096): (8, (3977.6, "humming"), 7833.3, 5803.5, 3112.0),
}
# fmt: on
# (K, N, experts, experts a token)
_LAYERS = {
    "qwen3_gate_up": (2048, 1536, 128, 8),
    "qwen3_down": (768, 2048, 128, 8),
    "mixtral_gate_up": (4096, 28672, 8, 2),
}


def read_floor_us(K: int, N: int) -> float | None:
    """Return how long the fastest plain read of the packed weights took, if it was measured."""
    return _DENSE[K, N][0] if (K, N) in _DENSE else None


def _row(op: str, problem: dict[str, Any], peer: str, kind: str, us: float) -> dict[str, Any]:
    return {"op": op, "problem": problem, "peer": peer, "kind": kind, "us": us}


def _dense() -> Iterator[dict[str, Any]]:
    for (K, N), (_, cells) in _DENSE.items():
        for M, (us, peer, cublas_us) in zip(_ROWS, cells, strict=True):
            problem = {"M": M, "N": N, "K": K, "group_size": GROUP_SIZE}
            yield _row("w4a16_gemm", problem, peer, "4-bit", us)
            yield _row("w4a16_gemm", problem, "cuBLAS", "fp16", cublas_us)


def _moe() -> Iterator[dict[str, Any]]:
    for (layer, tokens), (_, (us, peer), fused_us, loop_us, cublas_us) in _MOE.items():
        K, N, num_experts, top_k = _LAYERS[layer]
        problem = {
            "tokens": tokens, "N": N, "K": K, "num_experts": num_experts, "top_k": top_k,
            "group_size": GROUP_SIZE, "routing": "uniform",
        }  # fmt: skip
        yield _row("grouped_gemm", problem, peer, "4-bit", us)
        yield _row("grouped_gemm", problem, "fused Marlin", "4-bit", fused_us)
        yield _row("grouped_gemm", problem, "Marlin an expert", "4-bit", loop_us)
        yield _row("grouped_gemm", problem, "cuBLAS an expert", "fp16", cublas_us)


PEERS: tuple[dict[str, Any], ...] = (
    {
        "gpu": "NVIDIA H200",
        "date": DATE,
        "regime": "cold",
        "source": f"measured on one H200: the fastest of {', '.join(DENSE_PEERS)}; and cuBLAS fp16",
        "rows": [*_dense(), *_moe()],
    },
)
