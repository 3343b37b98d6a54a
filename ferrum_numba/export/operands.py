"""What each parameter of an exported program is: its elements, its shape and what it means.

Shapes are in the program's own scalars, and in M, the rows of x. `dtype` stands for the program's
fp16 or bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferrum_numba.contract import Config, Launch, Parameter
from ferrum_numba.export import experts_operands
from ferrum_numba.export.operand import ALIGNMENT_BYTES, Operand

# what a tensor map needs
MAP_ALIGNMENT_BYTES = 128
DOCS = "docs/export.md#recipe"
SIZES = {"pointer": 8, "uint32": 4, "int32": 4}


# name -> how the elements lie; the long form is in the docs
LAYOUTS: Mapping[str, str] = {
    "rows": "row-major, nothing between rows",
    "vector": "one after the other",
    "marlin": "Marlin's tiles of 16 rows and 64 columns, 512 bytes each, a row of tiles after the "
    "other: what the program `repack` makes",
    "marlin_scales": "row-major; columns permuted, within 64 where there are several groups, "
    "within 32 where there is one",
    "marlin_zero_points": "row-major, eight codes of 4 bits a word, columns permuted",
    "marlin_bias": "permuted as scales of one group are",
    "gptq": "row-major; a word has the 4-bit codes of 8 rows of one column, the first row lowest",
    "gptq_zero_points": "row-major; a word has the codes of 8 columns, the first lowest",
}

PACKED = {
    "x": Operand("dtype", "[M, x_columns]", "read", "rows", "activations; of a weight in act-order "
                 "with its columns gathered by perm before"),
    "packed": Operand("int32", "[k/16, 2*n]", "read", "marlin", "4-bit codes, padded with 8"),
    "scales": Operand("dtype", "[groups, n]", "read", "marlin_scales", "scales, padded with 0; "
                      "groups is 1 or k / group_size of the config"),
    "zero_points": Operand("int32", "[groups, n/8]", "read", "marlin_zero_points", "zero points; "
                           "not read by a program without has_zero_points, so 0 will do"),
    "bias": Operand("dtype", "[n]", "read", "marlin_bias", "added to the fp32 sum; not read where "
                    "has_bias is 0, so 0 will do"),
    "out": Operand("dtype", "[M, out_columns]", "write", "rows", "the product, rounded once"),
}  # fmt: skip
OPERANDS: Mapping[str, Mapping[str, Operand]] = {
    **dict.fromkeys(("marlin", "decode", "decode_wgmma", "prefill"), PACKED),
    "w4a16_gptq": {
        "x": Operand("dtype", "[M, k]", "read", "rows", "activations"),
        "qweight": Operand("int32", "[k/8, n]", "read", "gptq", "4-bit codes of the checkpoint"),
        "scales": Operand("dtype", "[groups, n]", "read", "rows", "scales of the checkpoint"),
        "qzeros": Operand("int32", "[groups, n/8]", "read", "gptq_zero_points", "zero points, less "
                          "1 each where zero_offset is 0x11111111; 7 each of a symmetric weight"),
        "g_idx": Operand("int32", "[k]", "read", "vector", "group of each row; read only by a "
                         "program with group_rows = 1, else 0 will do"),
        "bias": Operand("dtype", "[n]", "read", "vector", "added to the fp32 sum; not read where "
                        "has_bias is 0, so 0 will do"),
        "out": Operand("dtype", "[M, n]", "write", "rows", "the product, rounded once"),
    },
    "gather_columns": {
        "x": Operand("16 bits", "[M, k]", "read", "rows", "activations"),
        "perm": Operand("int32", "[k]", "read", "vector", "column of x that becomes column j: "
                        "argsort of g_idx, equal groups in the order of the checkpoint"),
        "out": Operand("16 bits", "[M, k]", "write", "rows", "x with its columns in that order"),
    },
    "add_bias": {
        "x": Operand("dtype", "[M, n]", "read", "rows", "a product that was rounded"),
        "bias": Operand("dtype", "[n]", "read", "vector", "added in fp32"),
        "out": Operand("dtype", "[M, n]", "write", "rows", "the sum, rounded; may be x itself"),
    },
    "repack": {
        "qweight": Operand("int32", "[experts, k/8, n]", "read", "gptq", "4-bit codes of the "
                           "checkpoint"),
        "perm": Operand("int32", "[experts, k]", "read", "vector", "row that becomes row j, of a "
                        "weight in act-order; else not read, so 0 will do"),
        "out": Operand("int32", "[experts, k_tiles, 128*n_tiles]", "write", "marlin",
                       "the packed weight"),
    },
    **experts_operands.OPERANDS,
}  # fmt: skip
SCALARS: Mapping[str, str] = {
    "m": "rows of x and out, M",
    "n": "columns of the weight, as it is stored",
    "k": "rows of the weight, as it is stored",
    "x_columns": "columns of x, K: rows of the weight before padding",
    "out_columns": "columns of out, N: columns of the weight before padding",
    "stripe_steps": "steps of a block's stripe; goes with the grid",
    "striped_tiles": "output tiles that are cut into stripes; goes with the grid",
    "has_bias": "1 where bias is added, else 0",
    "group_size": "rows of the weight that share a scale",
    "zero_offset": "added to each word of qzeros: 0x11111111 for words of GPTQ v1, 0 for v2",
    "experts": "weights that are packed at once",
    "k_tiles": "rows of tiles of a packed weight: stored K / 16",
    "n_tiles": "tiles in such a row: stored N / 64",
    **experts_operands.SCALARS,
}
WORKSPACE: Mapping[str, str] = {
    "slots": "sums that blocks hand over; a word that is not 0 has arrived, and who takes it "
    "leaves 0",
    "partials": "fp32 sums of tiles that blocks share; nothing is read that was not written in "
    "this launch",
    "counters": "how many blocks have left their sums; the last one leaves 0",
    "maps": "tensor maps that the blocks make for themselves in every launch",
}
# of the workspace: what every launch must find as zeros, and leaves so
FOUND_ZERO = frozenset({"slots", "counters"})


def describe_parameter(
    kernel_name: str, config: Config, launch: Launch, parameter: Parameter
) -> dict[str, Any]:
    """Return a parameter as the manifest has it."""
    name, kind = parameter.name, parameter.kind
    head = {"name": name, "type": kind, "bytes": SIZES[kind]}
    if kind != "pointer":
        return {**head, "meaning": SCALARS[name]}
    if name in launch.workspace:
        aligned = MAP_ALIGNMENT_BYTES if name == "maps" else ALIGNMENT_BYTES
        found = "zero" if name in FOUND_ZERO else "any"
        return {
            **head,
            "access": "workspace",
            "alignment": aligned,
            "before": found,
            "after": found,
            "meaning": WORKSPACE[name],
        }
    operand = OPERANDS[kernel_name][name]
    element = config.dtype if operand.element == "dtype" else operand.element
    return {
        **head,
        "access": operand.access,
        "alignment": operand.alignment,
        "element": element,
        "shape": operand.shape,
        "layout": operand.layout,
        "meaning": operand.meaning,
    }
