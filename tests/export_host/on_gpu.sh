#!/usr/bin/env bash
# Exports for the H200, runs every entry by both hosts on the GPU here, and shows a missing reset:
#     tests/export_host/on_gpu.sh [FOLDER]      FOLDER gets the exports and what the hosts say
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=${1:-build/export}
bin=${VENV:-.venv}/bin
include=$("$bin/python" -c 'import nvidia, pathlib
print(next(f.parent for p in nvidia.__path__ for f in pathlib.Path(p).rglob("cuda.h")))')
mkdir -p "$out"
cc -std=gnu11 -O2 -I "$include" tests/export_host/host.c -o "$out/host" -ldl -lm

# every program of the peers' table; then act-order, zero points, bf16, both ways of a bias, GPTQ's layout
"$bin/ferrum-numba" export --gpu h200 --problem h200-peers --vectors --out "$out/peers"
odd=N=4096,K=4096,group_size=64,zero_points=gptq,act_order=true,bias=true,dtype=bf16,M=1
"$bin/ferrum-numba" export --gpu h200 --problem "$odd" --m 1,16,64,512 --bias-mode two_step --vectors --out "$out/odd"
"$bin/ferrum-numba" export --gpu h200 --problem "$odd" --m 1,16,64 --store raw --vectors --out "$out/raw"

status=0
for export in peers odd raw; do
    for host in "$out/host" "$bin/python tests/export_host/host.py"; do
        echo "== $host $export"
        $host "$out/$export" || status=1
    done
done
echo "== a workspace that nobody zeroed: it must not agree"
if "$out/host" "$out/raw" --no-reset; then status=1; fi
exit $status
