#!/usr/bin/env bash
# nvJitLink ignores `setmaxnreg` in PTX that ptxas of the same release obeys.
#
# nvidia-nvjitlink 13.5.37 and nvidia-cuda-nvcc 13.5.37 (its ptxas), no GPU and no driver. A valid
# kernel for sm_90a gives registers back in one warpgroup and takes them in another. From ptxas its
# machine code has USETMAXREG twice. nvJitLink links the same PTX for the same target to code that has
# none: the link succeeds, with a warning in its info log (C7504), "to maintain compatibility across
# compilation units". A warp-specialised kernel then keeps the registers it was launched with: its
# accumulators spill, or it is slower, and nothing fails.
#
# ptxas in turn must be able to tell the registers at entry, from `.maxntid` with `.minnctapersm`, or
# from `.maxnreg`; with `.maxntid` or `.reqntid` alone it ignores both instructions too (C7508).
#
# Two ways around: hand nvJitLink LTO-IR and `-lto`, or assemble with ptxas and ship the cubin.
#
# Prints what it saw, and fails if that changes. Needs Python 3.11 or newer and PyPI.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check \
    cuda-bindings==13.5.0 nvidia-nvjitlink==13.5.37 nvidia-cuda-nvcc==13.5.37 \
    nvidia-cuda-nvdisasm==13.5.37

cat > kernel.ptx <<'PTX'
.version 8.8
.target sm_90a
.address_size 64
.visible .entry roles(.param .u64 out)
.maxntid 256, 1, 1
.minnctapersm 1
{
    .reg .pred copies;
    .reg .b32 tid;
    .reg .b64 place, offset;
    ld.param.u64 place, [out];
    mov.u32 tid, %tid.x;
    mul.wide.u32 offset, tid, 4;
    add.u64 place, place, offset;
    setp.ge.u32 copies, tid, 128;
    @copies bra copy;
    setmaxnreg.inc.sync.aligned.u32 232;
    st.global.u32 [place], tid;
    ret;
copy:
    setmaxnreg.dec.sync.aligned.u32 40;
    st.global.u32 [place], 0;
    ret;
}
PTX

cat > link.py <<'PY'
from pathlib import Path

from cuda.bindings import nvjitlink

ptx = Path("kernel.ptx").read_bytes()
options = ["-arch=sm_90a", "-verbose"]
handle = nvjitlink.create(len(options), options)
nvjitlink.add_data(handle, nvjitlink.InputType.PTX, ptx, len(ptx), "roles")
nvjitlink.complete(handle)
cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
nvjitlink.get_linked_cubin(handle, cubin)
log = bytearray(nvjitlink.get_info_log_size(handle))
nvjitlink.get_info_log(handle, log)
Path("linked.cubin").write_bytes(cubin)
Path("linked.log").write_bytes(log)
PY

site=$(env/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
ptxas=$(find "$site" -type f -name ptxas | head -1)
nvdisasm=$(find "$site" -type f -name nvdisasm | head -1)
chmod +x "$ptxas" "$nvdisasm"

"$ptxas" -arch=sm_90a -o assembled.cubin kernel.ptx
env/bin/python link.py
count() { "$nvdisasm" -c "$1" | grep -c USETMAXREG || true; }
assembled=$(count assembled.cubin)
linked=$(count linked.cubin)

echo "ptxas $("$ptxas" --version | grep -o 'V13[0-9.]*'): USETMAXREG stands $assembled times"
echo "nvJitLink 13.5.37, the same PTX:  USETMAXREG stands $linked times"
tr -d '\0' < linked.log | grep -i setmaxnreg || true
if [[ $assembled != 2 || $linked != 0 ]]; then
    echo "changed: 2 and 0 times were seen before" >&2
    exit 1
fi
