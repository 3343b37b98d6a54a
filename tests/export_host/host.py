"""Run every entry of an export on its test vectors, with cuda-bindings and NumPy, and compare.

    python host.py DIR [--no-reset]

DIR is what `ferrum-numba export --vectors` wrote. `--no-reset` fills the workspace with ones, as an
engine does that forgets to zero it. Exit status: 0 all agree, 1 some do not, 2 refused.
"""

import ctypes
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from cuda.bindings import driver

SCHEMA, WRONG, REFUSED, MOST_SECONDS = 1, 1, 2, 10
OPERATORS = {"+": lambda a, b: a + b, "*": lambda a, b: a * b, "ceil_div": lambda a, b: -(-a // b)}
# of safetensors; NumPy has no bfloat16 of its own
TYPES = {"F16": "f2", "BF16": "u2", "F32": "f4", "I32": "i4", "U16": "u2"}


def evaluate(formula, M):
    """Return the value of a whole number, "M", or [operator, formula, formula]."""
    if isinstance(formula, int):
        return formula
    if formula == "M":
        return M
    operator, left, right = formula
    return OPERATORS[operator](evaluate(left, M), evaluate(right, M))


def refuse(sentence):
    """End with a sentence."""
    print(f"host: {sentence}", file=sys.stderr)
    sys.exit(REFUSED)


def call(function, *arguments, doing=None):
    """Return what a function of the driver returns, or end with its error."""
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        refuse(f"{doing or function.__name__}: {driver.CUresult(status).name}")
    return values[0] if values else None


def read(folder, record):
    """Return the bytes of a file that is what the manifest says."""
    try:
        data = (folder / record["file"]).read_bytes()
    except OSError as error:
        refuse(f"{record['file']} cannot be read: {error.strerror}")
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        refuse(f"{record['file']} is damaged: its sha256 is not the manifest's")
    return data


def read_tensors(data):
    """Return (bytes, type) of every tensor of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: (body[slice(*tensor["data_offsets"])], tensor["dtype"])
        for name, tensor in header.items()
    }


def numbers(data, kind):
    """Return the elements of a tensor in float64."""
    values = np.frombuffer(data, TYPES[kind])
    if kind == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def refuse_arch(arch, device):
    """End unless a GPU runs cubins for an architecture: sm_90a is 9.0's alone."""
    names = driver.CUdevice_attribute
    major = call(
        driver.cuDeviceGetAttribute, names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device
    )
    minor = call(
        driver.cuDeviceGetAttribute, names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device
    )
    digits = arch.removeprefix("sm_").rstrip("af")
    wanted = (int(digits[:-1]), int(digits[-1]))
    exact = arch[-1] in "af"
    if wanted != (major, minor) if exact else wanted[0] != major or wanted[1] > minor:
        refuse(f"the cubins are for {arch}; the GPU is sm_{major}{minor}")


def load(folder, entry):
    """Return an entry's function, and the module that holds it."""
    module = call(driver.cuModuleLoadData, read(folder, entry), doing=entry["file"])
    function = call(driver.cuModuleGetFunction, module, entry["symbol"].encode())
    names = driver.CUfunction_attribute
    dynamic = names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    if entry["raise_smem_limit"]:
        call(driver.cuFuncSetAttribute, function, dynamic, entry["smem_bytes"])
    if entry["allow_large_cluster"]:
        allowed = names.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        call(driver.cuFuncSetAttribute, function, allowed, 1)
    return function, module


def attributes(entry):
    """Return the launch attributes of an entry."""
    names, made = driver.CUlaunchAttributeID, []
    if entry["cluster"] != [1, 1, 1]:
        one = driver.CUlaunchAttribute()
        one.id = names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = one.value.clusterDim
        size.x, size.y, size.z = entry["cluster"]
        made.append(one)
    if entry["programmatic"]:
        one = driver.CUlaunchAttribute()
        one.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        one.value.programmaticStreamSerializationAllowed = 1
        made.append(one)
    if entry["cooperative"]:
        one = driver.CUlaunchAttribute()
        one.id = names.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        one.value.cooperative = 1
        made.append(one)
    return made


def launch_config(entry, record, stream):
    """Return the launch's sizes and attributes."""
    config = driver.CUlaunchConfig()
    grid = [evaluate(formula, record["M"]) for formula in record["grid"]]
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = entry["block"]
    config.sharedMemBytes = entry["smem_bytes"]
    config.hStream = stream
    made = attributes(entry)
    if made:
        config.attrs, config.numAttrs = made, len(made)
    return config


def allocate(size, byte):
    """Return memory of the GPU, full of a byte."""
    address = call(driver.cuMemAlloc, size)
    call(driver.cuMemsetD8, address, byte, size)
    return address


def arguments(entry, record, tensors, out, byte):
    """Return the parameters' values in order, as ctypes, and what was allocated."""
    values, kept = [], [out]
    for parameter in entry["parameters"]:
        name, access = parameter["name"], parameter.get("access")
        if access is None:
            values.append(ctypes.c_uint32(evaluate(record["scalars"][name], record["M"])))
            continue
        if access == "write":
            address = out
        elif access == "workspace":
            address = allocate(evaluate(record["workspace"][name], record["M"]), byte)
            kept.append(address)
        else:
            data = tensors[name][0]
            address = allocate(len(data), 0)
            call(driver.cuMemcpyHtoD, address, data, len(data))
            kept.append(address)
        values.append(ctypes.c_uint64(int(address)))
    return values, kept


def finish(stream, symbol):
    """Wait for a launch; end where its blocks wait for each other for ever."""
    began = time.monotonic()
    while True:
        (status,) = driver.cuStreamQuery(stream)
        if status != driver.CUresult.CUDA_ERROR_NOT_READY:
            break
        if time.monotonic() - began > MOST_SECONDS:
            print(f"HANGS     {symbol}: its blocks still wait for each other", flush=True)
            os._exit(WRONG)
    if status != driver.CUresult.CUDA_SUCCESS:
        refuse(f"{symbol}: {status.name}")


def agrees(record, symbol, got, want):
    """Print how far a result is from what is expected, and return whether it is near enough."""
    wrong = np.abs(got - want)
    wrong[~np.isfinite(got)] = np.inf
    tiny = np.finfo(np.float64).tiny
    rel = np.linalg.norm(wrong) / max(np.linalg.norm(want), tiny)
    largest = wrong.max() / max(np.abs(want).max(), tiny)
    ok = rel <= record["tolerance"]["rel"] and largest <= record["tolerance"]["max"]
    print(f"{'ok' if ok else 'MISMATCH':9} {symbol}  rel_error {rel:.1e}  max_error {largest:.1e}")
    return ok


def run(folder, entry, record, function, stream, byte):
    """Run an entry twice on one vector: the second finds the workspace as the first left it."""
    tensors = read_tensors(read(folder, record))
    want = numbers(*tensors["expected"])
    got = np.empty(len(want), TYPES[record["out"]])
    out = allocate(got.nbytes, 0xFF)
    values, kept = arguments(entry, record, tensors, out, byte)
    slots = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    config, ok = launch_config(entry, record, stream), True
    for _ in range(2):
        call(driver.cuMemsetD8, out, 0xFF, got.nbytes)
        packed = ctypes.addressof(slots)
        call(driver.cuLaunchKernelEx, config, function, packed, 0, doing=entry["symbol"])
        finish(stream, entry["symbol"])
        call(driver.cuMemcpyDtoH, got.ctypes.data, out, got.nbytes)
        ok = ok and agrees(record, entry["symbol"], numbers(got.tobytes(), record["out"]), want)
    for address in kept:
        call(driver.cuMemFree, address)
    return ok


def main(folder, *options):
    """Run all entries; return the exit status."""
    folder, byte = Path(folder), 0xFF if "--no-reset" in options else 0
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        schema, entries = manifest["schema"], manifest["entries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"{folder} has no manifest that can be read: {error}")
    if schema != SCHEMA:
        refuse(f"this reads schema {SCHEMA}; the manifest has schema {schema}")
    if not entries:
        refuse("the manifest has no entries")
    call(driver.cuInit, 0)
    device = call(driver.cuDeviceGet, 0)
    name = call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode()
    call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, device))
    stream = call(driver.cuStreamCreate, 0)
    results = []
    for entry in manifest["entries"]:
        refuse_arch(entry["arch"], device)
        if "vectors" not in entry:
            refuse(f"{entry['symbol']} has no vectors: export with --vectors")
        function, module = load(folder, entry)
        results += [run(folder, entry, one, function, stream, byte) for one in entry["vectors"]]
        call(driver.cuModuleUnload, module)
    print(f"{sum(results)} of {len(results)} vectors agree on {name}")
    return 0 if all(results) else WRONG


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
