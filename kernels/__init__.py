"""The kernels, one folder a design: KERNELS are GEMMs, TOOLS what stands before and after them.

MOE stands around the grouped GEMMs of a layer of experts.
"""

from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.decode_wgmma.kernel import DecodeWgmma
from ferrum_numba.kernels.gptq.kernel import W4A16Gptq
from ferrum_numba.kernels.grouped_decode.apart import ExpertBuckets, ExpertLoop
from ferrum_numba.kernels.grouped_decode.kernel import GroupedDecode
from ferrum_numba.kernels.grouped_wgmma.kernel import GroupedWgmma
from ferrum_numba.kernels.marlin.kernel import Marlin
from ferrum_numba.kernels.moe.add_bias_pairs import AddBiasPairs
from ferrum_numba.kernels.moe.align_tokens import AlignTokens
from ferrum_numba.kernels.moe.combine import Combine
from ferrum_numba.kernels.moe.gather_pairs import GatherPairs
from ferrum_numba.kernels.moe.route_topk import RouteTopk
from ferrum_numba.kernels.moe.silu_mul import SiluMul
from ferrum_numba.kernels.prefill.kernel import Prefill
from ferrum_numba.kernels.tools.add_bias import AddBias
from ferrum_numba.kernels.tools.dequant_cublas import DequantCublas
from ferrum_numba.kernels.tools.dequantize import Dequantize
from ferrum_numba.kernels.tools.gather_columns import GatherColumns
from ferrum_numba.kernels.tools.quantize_rows import QuantizeRows
from ferrum_numba.kernels.tools.repack import Repack
from ferrum_numba.kernels.w4a8_decode.kernel import W4A8Decode
from ferrum_numba.kernels.w4a8_wgmma.kernel import W4A8Wgmma

# on a checkpoint's own tensors, and on the packed layout of kernels/shared/packed.py
RAW = (W4A16Gptq(),)
PACKED = (Marlin(), Decode(), DecodeWgmma(), Prefill())
# on the packed layout too, but with scratch for a whole weight: not for a layer that nobody asked
DENSE = (DequantCublas(),)
# on stacks of experts in the packed layout; APART to be held against them, not to be chosen
GROUPED = (GroupedDecode(), GroupedWgmma())
APART = (ExpertBuckets(), ExpertLoop())
LINEAR = RAW + PACKED + DENSE
# the same packed weights times 8-bit activations
PACKED_X8 = (W4A8Decode(), W4A8Wgmma())
KERNELS = LINEAR + GROUPED + APART + PACKED_X8
TOOLS = (
    Repack(), GatherColumns(), AddBias(), Dequantize(), GatherPairs(), AddBiasPairs(),
    QuantizeRows(),
)  # fmt: skip
# in the order in which a layer launches them
MOE = (RouteTopk(), AlignTokens(), SiluMul(), Combine())
