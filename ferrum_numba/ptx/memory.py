"""Loads, stores and atomics on global and shared memory, by address.

Global addresses are 64-bit, shared ones 32-bit, both in bytes and aligned to the size of the
access. `v2` and `v4` are vectors of 32-bit words: 8 and 16 bytes, the widest a lane can move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ferrum_numba.ptx.instruction import (
    BLOCKED,
    F32,
    U16,
    U32,
    U64,
    Array,
    Effect,
    F32x4,
    Instruction,
    Lanes,
    OperandType,
    U32x2,
    U32x4,
    instruction,
)

# opcodes of what passes once: no room in L1; of a policy for L2, an operand of its own
_STREAM = ".L1::no_allocate"
_HINT = ".L2::cache_hint"
# registers of the widest predicated access; a load must leave its result alone where it is off
_TEMPORARIES = ("t0", "t1", "t2", "t3")


def _size_bytes(kind: OperandType) -> int:
    element_bytes: int = np.dtype(kind.dtype).itemsize
    return element_bytes * max(kind.count, 1)


def _suffix(kind: OperandType) -> str:
    """Return the type of an access as PTX writes it: `.v4.u32`."""
    scalar = kind.name.partition("x")[0]
    return f".v{kind.count}.{scalar}" if kind.count else f".{scalar}"


def _values(data: Array, kind: OperandType) -> Array:
    values: Array = data.view(kind.dtype)
    return values if kind.count else values[:, 0]


def _bytes(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def _is_shared(opcode: str) -> bool:
    """Return whether the space, the second word of an opcode, is shared memory."""
    return opcode.split(".")[1] == "shared"


def _read(lanes: Lanes, opcode: str, address: Array, kind: OperandType) -> Array:
    read = lanes.load_shared if _is_shared(opcode) else lanes.load_global
    return read(address, _size_bytes(kind))


def _write(lanes: Lanes, opcode: str, address: Array, values: Array) -> None:
    write = lanes.store_shared if _is_shared(opcode) else lanes.store_global
    write(address, _bytes(values))


def _operands(opcode: str, kind: OperandType | None = None) -> dict[str, Any]:
    """Return the address, the value where there is one, and the policy that a hint asks for."""
    operands = {"address": U32 if _is_shared(opcode) else U64}
    if kind is not None:
        operands["value"] = kind
    if opcode.endswith(_HINT):
        operands["policy"] = U64
    return operands


def _effect(opcode: str) -> Effect:
    # what nobody writes may be read in another order than the accesses around it
    return "volatile" if ".nc" in opcode else "memory"


def _document(twin: Callable[..., Any], doc: str, word: str) -> None:
    twin.__doc__ = f'{doc}\n\n    Source: PTX ISA, "Data Movement Instructions: {word}".\n    '


def _load(name: str, opcode: str, kind: OperandType, doc: str) -> Instruction:
    """Make `(address) -> value`, with a policy for L2 at the end where the opcode has a hint."""

    def twin(lanes: Lanes, address: Array, *policy: Array) -> Array:
        return _values(_read(lanes, opcode, address, kind), kind)

    _document(twin, doc, "ld")
    operands = _operands(opcode)
    policy = ", <policy>" if "policy" in operands else ""
    template = f"{opcode}{_suffix(kind)} <d>, [<address>]{policy};"
    return Instruction(name, template, operands, kind, twin, effect=_effect(opcode))


def _store(name: str, opcode: str, kind: OperandType, doc: str) -> Instruction:
    """Make `(address, value)`, with a policy for L2 at the end where the opcode has a hint."""

    def twin(lanes: Lanes, address: Array, value: Array, *policy: Array) -> None:
        _write(lanes, opcode, address, value)

    _document(twin, doc, "st")
    operands = _operands(opcode, kind)
    policy = ", <policy>" if "policy" in operands else ""
    template = f"{opcode}{_suffix(kind)} [<address>], <value>{policy};"
    return Instruction(name, template, operands, None, twin, effect="memory")


def _load_if(name: str, opcode: str, kind: OperandType, doc: str) -> Instruction:
    """Make `(address, pred) -> value`: zero, and no access at all, where pred is 0."""
    registers = _TEMPORARIES[: max(kind.count, 1)]
    vector = "{" + ", ".join(registers) + "}" if kind.count else registers[0]
    results = [f"<d.{i}>" for i in range(kind.count)] or ["<d>"]
    lines = [
        f".reg .pred p; .reg .b32 {', '.join(registers)};",
        "setp.ne.u32 p, <pred>, 0;",
        *(f"mov.b32 {register}, 0;" for register in registers),
        f"@p {opcode}{_suffix(kind)} {vector}, [<address>];",
        *(f"mov.b32 {d}, {t};" for d, t in zip(results, registers, strict=True)),
    ]

    def twin(lanes: Lanes, address: Array, pred: Array) -> Array:
        on = np.flatnonzero(pred)
        data = np.zeros((len(address), _size_bytes(kind)), np.uint8)
        if on.size:
            data[on] = _read(lanes.only(on), opcode, address[on], kind)
        return _values(data, kind)

    _document(twin, doc, "ld")
    template = "{\n" + "\n".join(lines) + "\n}"
    operands = {**_operands(opcode), "pred": U32}
    return Instruction(name, template, operands, kind, twin, effect=_effect(opcode))


def _store_if(name: str, opcode: str, kind: OperandType, doc: str) -> Instruction:
    """Make `(address, value, pred)`: nothing is written where pred is 0."""

    def twin(lanes: Lanes, address: Array, value: Array, pred: Array) -> None:
        on = np.flatnonzero(pred)
        if on.size:
            _write(lanes.only(on), opcode, address[on], value[on])

    _document(twin, doc, "st")
    template = (
        "{\n.reg .pred p;\nsetp.ne.u32 p, <pred>, 0;\n"
        f"@p {opcode}{_suffix(kind)} [<address>], <value>;\n}}"
    )
    operands = {**_operands(opcode, kind), "pred": U32}
    return Instruction(name, template, operands, None, twin, effect="memory")


ld_global_u16 = _load("ld_global_u16", "ld.global", U16, "Load 2 bytes.")
ld_global_u32 = _load("ld_global_u32", "ld.global", U32, "Load 4 bytes.")
ld_global_f32 = _load("ld_global_f32", "ld.global", F32, "Load an fp32.")
ld_global_v2 = _load("ld_global_v2", "ld.global", U32x2, "Load 8 bytes as two words.")
ld_global_v4 = _load("ld_global_v4", "ld.global", U32x4, "Load 16 bytes as four words.")
ld_global_v4_f32 = _load("ld_global_v4_f32", "ld.global", F32x4, "Load 4 fp32.")

# .nc: the read-only path, for what nobody writes while the kernel runs
ld_global_nc_u16 = _load("ld_global_nc_u16", "ld.global.nc", U16, "Load 2 constant bytes.")
ld_global_nc_u32 = _load("ld_global_nc_u32", "ld.global.nc", U32, "Load 4 constant bytes.")
ld_global_nc_v2 = _load("ld_global_nc_v2", "ld.global.nc", U32x2, "Load 8 constant bytes.")
ld_global_nc_v4 = _load("ld_global_nc_v4", "ld.global.nc", U32x4, "Load 16 constant bytes.")

# _stream: for what this SM reads once; _hint: the same, with a policy from `createpolicy_*`
_NC_STREAM = f"ld.global.nc{_STREAM}"
_NC_HINT = f"{_NC_STREAM}{_HINT}"
ld_global_nc_u32_stream = _load(
    "ld_global_nc_u32_stream", _NC_STREAM, U32, "Load 4 constant bytes past L1."
)
ld_global_nc_v2_stream = _load(
    "ld_global_nc_v2_stream", _NC_STREAM, U32x2, "Load 8 constant bytes past L1."
)
ld_global_nc_v4_stream = _load(
    "ld_global_nc_v4_stream", _NC_STREAM, U32x4, "Load 16 constant bytes past L1."
)
ld_global_nc_u32_hint = _load(
    "ld_global_nc_u32_hint", _NC_HINT, U32, "Load 4 constant bytes, with a policy for L2."
)
ld_global_nc_v2_hint = _load(
    "ld_global_nc_v2_hint", _NC_HINT, U32x2, "Load 8 constant bytes, with a policy for L2."
)
ld_global_nc_v4_hint = _load(
    "ld_global_nc_v4_hint", _NC_HINT, U32x4, "Load 16 constant bytes, with a policy for L2."
)
ld_global_nc_u32_if = _load_if(
    "ld_global_nc_u32_if", "ld.global.nc", U32, "Load 4 constant bytes; 0 where pred is 0."
)
ld_global_nc_v2_if = _load_if(
    "ld_global_nc_v2_if", "ld.global.nc", U32x2, "Load 8 constant bytes; 0 where pred is 0."
)
ld_global_nc_v4_if = _load_if(
    "ld_global_nc_v4_if", "ld.global.nc", U32x4, "Load 16 constant bytes; 0 where pred is 0."
)

ld_global_v4_if = _load_if(
    "ld_global_v4_if", "ld.global", U32x4, "Load 16 bytes; 0 where pred is 0."
)

# .cg: from L2, past an L1 that may hold what another SM has overwritten since
ld_global_cg_u32 = _load("ld_global_cg_u32", "ld.global.cg", U32, "Load 4 bytes from L2.")
ld_global_cg_v4 = _load("ld_global_cg_v4", "ld.global.cg", U32x4, "Load 16 bytes from L2.")
ld_global_cg_v4_f32 = _load("ld_global_cg_v4_f32", "ld.global.cg", F32x4, "Load 4 fp32 from L2.")

st_global_u16 = _store("st_global_u16", "st.global", U16, "Store 2 bytes.")
st_global_u32 = _store("st_global_u32", "st.global", U32, "Store 4 bytes.")
st_global_f32 = _store("st_global_f32", "st.global", F32, "Store an fp32.")
st_global_v2 = _store("st_global_v2", "st.global", U32x2, "Store 8 bytes.")
st_global_v4 = _store("st_global_v4", "st.global", U32x4, "Store 16 bytes.")
st_global_v4_f32 = _store("st_global_v4_f32", "st.global", F32x4, "Store 4 fp32.")
_ST_STREAM = f"st.global{_STREAM}"
_ST_HINT = f"st.global{_HINT}"
st_global_u32_stream = _store(
    "st_global_u32_stream", _ST_STREAM, U32, "Store 4 bytes that take no room in L1."
)
st_global_v2_stream = _store(
    "st_global_v2_stream", _ST_STREAM, U32x2, "Store 8 bytes that take no room in L1."
)
st_global_v4_stream = _store(
    "st_global_v4_stream", _ST_STREAM, U32x4, "Store 16 bytes that take no room in L1."
)
st_global_u32_hint = _store(
    "st_global_u32_hint", _ST_HINT, U32, "Store 4 bytes, with a policy for L2."
)
st_global_v2_hint = _store(
    "st_global_v2_hint", _ST_HINT, U32x2, "Store 8 bytes, with a policy for L2."
)
st_global_v4_hint = _store(
    "st_global_v4_hint", _ST_HINT, U32x4, "Store 16 bytes, with a policy for L2."
)
st_global_u32_if = _store_if(
    "st_global_u32_if", "st.global", U32, "Store 4 bytes where pred is not 0."
)
st_global_v2_if = _store_if(
    "st_global_v2_if", "st.global", U32x2, "Store 8 bytes where pred is not 0."
)
st_global_v4_if = _store_if(
    "st_global_v4_if", "st.global", U32x4, "Store 16 bytes where pred is not 0."
)

ld_shared_u16 = _load("ld_shared_u16", "ld.shared", U16, "Load 2 bytes of shared memory.")
ld_shared_u32 = _load("ld_shared_u32", "ld.shared", U32, "Load 4 bytes of shared memory.")
ld_shared_f32 = _load("ld_shared_f32", "ld.shared", F32, "Load an fp32 of shared memory.")
ld_shared_v2 = _load("ld_shared_v2", "ld.shared", U32x2, "Load 8 bytes of shared memory.")
ld_shared_v4 = _load("ld_shared_v4", "ld.shared", U32x4, "Load 16 bytes of shared memory.")
ld_shared_v4_f32 = _load("ld_shared_v4_f32", "ld.shared", F32x4, "Load 4 fp32 of shared memory.")
st_shared_u16 = _store("st_shared_u16", "st.shared", U16, "Store 2 bytes to shared memory.")
st_shared_u32 = _store("st_shared_u32", "st.shared", U32, "Store 4 bytes to shared memory.")
st_shared_f32 = _store("st_shared_f32", "st.shared", F32, "Store an fp32 to shared memory.")
st_shared_v2 = _store("st_shared_v2", "st.shared", U32x2, "Store 8 bytes to shared memory.")
st_shared_v4 = _store("st_shared_v4", "st.shared", U32x4, "Store 16 bytes to shared memory.")
st_shared_v4_f32 = _store("st_shared_v4_f32", "st.shared", F32x4, "Store 4 fp32 to shared memory.")
ld_shared_u32_if = _load_if(
    "ld_shared_u32_if", "ld.shared", U32, "Load 4 bytes of shared memory; 0 where pred is 0."
)
ld_shared_v2_if = _load_if(
    "ld_shared_v2_if", "ld.shared", U32x2, "Load 8 bytes of shared memory; 0 where pred is 0."
)
ld_shared_v4_if = _load_if(
    "ld_shared_v4_if", "ld.shared", U32x4, "Load 16 bytes of shared memory; 0 where pred is 0."
)
st_shared_u32_if = _store_if(
    "st_shared_u32_if", "st.shared", U32, "Store 4 bytes to shared memory where pred is not 0."
)
st_shared_v2_if = _store_if(
    "st_shared_v2_if", "st.shared", U32x2, "Store 8 bytes to shared memory where pred is not 0."
)
st_shared_v4_if = _store_if(
    "st_shared_v4_if", "st.shared", U32x4, "Store 16 bytes to shared memory where pred is not 0."
)


@instruction("createpolicy.fractional.L2::evict_first.b64 <d>, 1.0;")
def createpolicy_evict_first(lanes: Lanes) -> U64:
    """Return the policy of what L2 should let go first: read once, by one SM.

    Source: PTX ISA, "Data Movement Instructions: createpolicy".
    """
    return np.zeros(len(lanes.thread), np.uint64)


@instruction("createpolicy.fractional.L2::evict_last.b64 <d>, 1.0;")
def createpolicy_evict_last(lanes: Lanes) -> U64:
    """Return the policy of what L2 should keep: read again by other SMs.

    Source: PTX ISA, "Data Movement Instructions: createpolicy".
    """
    return np.zeros(len(lanes.thread), np.uint64)


@instruction("ld.acquire.gpu.global.u32 <d>, [<address>];", effect="memory")
def ld_acquire_gpu(lanes: Lanes, address: U64) -> U32:
    """Load 4 bytes; what the block that released them wrote before is then visible.

    A lane of the interpreter lets all others go on before it reads, so a loop may poll.

    Source: PTX ISA, "Memory Consistency Model".
    """
    if lanes.block.pause(lanes.thread):
        return BLOCKED
    data = lanes.strong().load_global(address, 4)
    lanes.block.watch.acquire(lanes.thread, address)
    return _values(data, U32)


@instruction("st.release.gpu.global.u32 [<address>], <value>;", effect="memory")
def st_release_gpu(lanes: Lanes, address: U64, value: U32) -> None:
    """Store 4 bytes; who acquires them sees all that this thread wrote before.

    Source: PTX ISA, "Memory Consistency Model".
    """
    lanes.strong().store_global(address, _bytes(value))
    lanes.block.watch.release(lanes.thread, address)


def _add(lanes: Lanes, address: Array, value: Array, order: str) -> Array:
    """Add one lane after the other, as several may have the same address; return what was there."""
    old = np.empty_like(value)
    machine = lanes.block.machine
    for i in range(len(address)):
        old[i] = machine.memory.load(address[i : i + 1], 4).view(value.dtype)[0, 0]
        machine.memory.store(address[i : i + 1], _bytes(old[i : i + 1] + value[i : i + 1]))
    machine.events += 1
    lanes.block.watch.update(lanes.thread, address, order)
    return old


@instruction("red.relaxed.gpu.global.add.u32 [<address>], <value>;", effect="memory")
def red_add_relaxed_gpu(lanes: Lanes, address: U64, value: U32) -> None:
    """Add to 4 bytes at once; orders nothing else.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: red".
    """
    _add(lanes, address, value, "relaxed")


@instruction("red.release.gpu.global.add.u32 [<address>], <value>;", effect="memory")
def red_add_release_gpu(lanes: Lanes, address: U64, value: U32) -> None:
    """Add to 4 bytes at once; who acquires them sees all that this thread wrote before.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: red".
    """
    _add(lanes, address, value, "release")


@instruction("red.relaxed.cta.shared.add.u32 [<address>], <value>;", effect="memory")
def red_shared_add(lanes: Lanes, address: U32, value: U32) -> None:
    """Add to 4 bytes of the block's shared memory at once.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: red".
    """
    places, first, which = np.unique(address, return_index=True, return_inverse=True)
    sums = lanes.block.shared.load(places, 4).view(np.uint32)[:, 0]
    np.add.at(sums, which, value)
    lanes.strong().only(first).store_shared(places, _bytes(sums))


@instruction("red.relaxed.gpu.global.add.f32 [<address>], <value>;", effect="memory")
def red_add_f32(lanes: Lanes, address: U64, value: F32) -> None:
    """Add to an fp32 at once, in an order that differs from run to run on a GPU.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: red".
    """
    _add(lanes, address, value, "relaxed")


@instruction("atom.acq_rel.gpu.global.add.u32 <d>, [<address>], <value>;", effect="memory")
def atom_add_acq_rel_gpu(lanes: Lanes, address: U64, value: U32) -> U32:
    """Add to 4 bytes at once and return what was there; acquires and releases.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: atom".
    """
    return _add(lanes, address, value, "acq_rel")
