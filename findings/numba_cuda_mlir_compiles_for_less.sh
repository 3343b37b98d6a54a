#!/usr/bin/env bash
# numba-cuda-mlir compiles for less than it is asked for, and says nothing.
#
# numba-cuda-mlir 0.6.0 with CUDA 13.5.37, no GPU and no driver. Two requests that numba-cuda, whose
# interface it has, obeys:
#
# * `compile_ptx(…, cc=(9, 0, "a"))` gives PTX for sm_90, which lacks what sm_90a alone has: wgmma,
#   setmaxnreg. `jit(…, chip="sm_90a")` keeps the a.
# * The third launch bound, the most blocks of a cluster, is lost for sm_90a: no `.maxclusterrank` is
#   in the PTX. It is there for sm_100a, for which another code generator is used.
#
# numba-cuda-mlir asks a driver for the GPU at hand even when it is told its target. So that none is
# needed, the answer that it keeps is put there beforehand.
#
# Prints what it saw, and fails if that changes. Needs Python 3.11 or newer and PyPI.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check \
    'numba-cuda-mlir[cu13]==0.6.0' numpy==2.4.6 cuda-bindings==13.5.0 nvidia-nvvm==13.5.37 \
    nvidia-nvjitlink==13.5.37 nvidia-cuda-nvrtc==13.5.37

cat > ask.py <<'PY'
import re

from numba_cuda_mlir import cuda, tools
from numba_cuda_mlir.numba_cuda import types

tools._cached_cc = (9, 0)


def kernel(out, value):
    out[cuda.threadIdx.x] = value


def said(word, ptx):
    return " ".join(re.findall(rf"^\{word}\s.*", ptx, re.MULTILINE)) or f"no {word}"


SIGNATURE = types.void(types.int32[::1], types.int32)
ptx, _ = cuda.compile_ptx(kernel, SIGNATURE, cc=(9, 0, "a"))
print('cc=(9, 0, "a"):', said(".target", ptx))
for chip in ("sm_90a", "sm_100a"):
    jitted = cuda.jit(kernel, chip=chip, launch_bounds=(128, 2, 4))
    ptx = jitted.compile(SIGNATURE).ptx
    print(f"launch_bounds=(128, 2, 4) for {chip}:", said(".maxclusterrank", ptx))
PY
env/bin/python ask.py | tee seen
cat > before <<'SEEN'
cc=(9, 0, "a"): .target sm_90
launch_bounds=(128, 2, 4) for sm_90a: no .maxclusterrank
launch_bounds=(128, 2, 4) for sm_100a: .maxclusterrank 4
SEEN
if ! cmp --silent seen before; then
    echo "changed: the three lines above were others before:" >&2
    cat before >&2
    exit 1
fi
