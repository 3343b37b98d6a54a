#!/usr/bin/env bash
# Make tiny checkpoints with the exporters of these versions and compare every layer with what is read.
# On a CPU, in about ten minutes and 12 GB; the exporters need environments of their own.
#
#     perf/exporters.sh [FOLDER]
#
# 2026-11-30: "right" of all 24: gptqmodel sym, asym, v2, planar, channel, act-order, moe; optimum sym,
# asym; auto_round sym, asym, awq, gptq, auto_gptq, auto_awq, llm_compressor, moe; llmcompressor sym,
# asym, channel; autoawq gemm, gemv, gemv_fast, marlin.
set -euo pipefail

cd "$(dirname "$0")/.."
folder=${1:-$(mktemp -d)}
# no GPU is needed, and one changes what some exporters do
export CUDA_VISIBLE_DEVICES=

environment() {
    name=$1
    shift
    [ -d "$folder/$name" ] || python3.11 -m venv "$folder/$name"
    "$folder/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
}

make() {
    for exporter in $2; do
        "$folder/$1/bin/python" perf/exporters.py make "$exporter" "$folder/out"
    done
}

environment gptqmodel setuptools torch==2.14.1 transformers==5.24.0
environment gptqmodel --no-build-isolation gptqmodel==7.7.0 optimum==2.3.0
environment gptqmodel --no-deps autoawq==0.2.9
environment auto-round auto-round==0.16.1 transformers==5.24.0 compressed-tensors==0.19.0
environment llmcompressor llmcompressor==0.14.0 transformers==5.17.0
make gptqmodel "gptqmodel optimum autoawq"
make auto-round auto_round
make llmcompressor llmcompressor
.venv/bin/python perf/exporters.py compare "$folder/out"
