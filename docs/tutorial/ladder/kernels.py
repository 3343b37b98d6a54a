"""The list that `--kernels ladder.kernels` reads."""

from ladder.step1_scalar import Scalar
from ladder.step2_vector import Vector
from ladder.step3_registers import Registers
from ladder.step4_mma import Mma
from ladder.step5_pipeline import Pipeline
from ladder.step6_space import Space
from ladder.step7_share_k import ShareK
from ladder.step8_wgmma import Wgmma
from ladder.step9_experts import Experts

KERNELS = (
    Scalar(), Vector(), Registers(), Mma(), Pipeline(), Space(), ShareK(), Wgmma(), Experts(),
)  # fmt: skip
