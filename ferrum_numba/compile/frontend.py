"""numba-cuda's front end, without the work that a kernel's code does not need.

Nearly all of a build is numba's Python. Here it is spared what changes nothing of the code made:

* passes for what a plain function does not have: closures, comprehensions, `with`, array
  expressions, literal loops. A function with any of these goes through all of numba's passes
* looking for the signature of a call again: numba tries every template of `+` whenever two numbers
  are added, once when it types them and once more when it lowers them
* asking LLVM for the size of a type, by assembling a module, for debug information nobody wrote
* the lifetimes of variables after every pass, and the Python signature of each function that emits
  an instruction
* walking a block once for each of its variables

And what is not wanted: numba clears a variable after its last use, where it may be one that counts
references, and NVVM does not always see that nobody reads the zero. So the PTX is numba's own or a
little shorter; tests compare the two.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from numba.core.types.functions import BaseFunction
from numba.cuda import compiler, dispatcher, lowering, types, utils
from numba.cuda.core import interpreter, ir, typed_passes, untyped_passes
from numba.cuda.core.analysis import compute_use_defs, must_use_alloca
from numba.cuda.core.compiler_machinery import PassManager
from numba.cuda.core.postproc import PostProcessor
from numba.cuda.core.transforms import canonicalize_cfg
from numba.cuda.descriptor import cuda_target

# what numba compiles a plain function with, in its order
PASSES = (
    compiler.CUDATranslateBytecode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.InlineInlinables,
    untyped_passes.DeadBranchPrune,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    compiler.CreateLibrary,
    compiler.CUDANativeLowering,
    compiler.CUDABackend,
)
# with these the passes left out have something to do
LITERALS = frozenset(("literally", "literal_unroll"))
# signatures remembered at most; a kernel has some hundred
REMEMBERED = 1 << 14


class PlainCompiler(compiler.CUDACompiler):  # type: ignore[misc]
    """numba-cuda's compiler with the passes of a plain function, where it is given one."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes of the function at hand."""
        if not is_plain(self.state.func_id.func):
            everything: list[Any] = super().define_pipelines()
            return everything
        passes = PlainPasses("plain")
        for one in PASSES:
            passes.add_pass(one, one.__name__)
        passes.finalize()
        return [passes]


class PlainPasses(PassManager):  # type: ignore[misc]
    """Runs passes one after the other; numba looks after each at what it did, and says so."""

    def _runPass(self, index: int, step: Any, state: Any) -> None:
        step.analysis = self._analysis
        step.run_initialization(state)
        step.run_pass(state)
        step.run_finalizer(state)


def is_plain(function: FunctionType) -> bool:
    """Return whether a function holds nothing that the passes left out are there for."""
    code = function.__code__
    holds_functions = any(isinstance(constant, CodeType) for constant in code.co_consts)
    # numba's own implementations count on all of its passes
    is_numbas = (function.__module__ or "").partition(".")[0] == "numba"
    return not (holds_functions or is_numbas or LITERALS.intersection(code.co_names))


class _Signatures:
    """The signatures that calls were found to have, by function and argument types.

    Not those of device functions: each remembers its own, and is to be forgotten with its kernel.
    """

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}

    def remember(self, find: Callable[..., Any], key: Any, *call: Any) -> Any:
        """Return what `find(*call)` returns; an error, and None, are found again every time."""
        try:
            found = self._found.get(key)
        except TypeError:
            # not everything that can be called can be looked up
            return find(*call)
        if found is None:
            found = find(*call)
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            if found is not None:
                self._found[key] = found
        return found


_resolved, _typed, _sizes = _Signatures(), _Signatures(), _Signatures()


@contextmanager
def front_end(compute_capability: tuple[Any, ...]) -> Iterator[None]:
    """Let numba compile for a target as the module's docstring says; hold its compiler lock."""
    typing, target = cuda_target.typing_context, cuda_target.target_context
    resolve, call_type = typing.resolve_function_type, BaseFunction.get_call_type
    abi_size = target.get_abi_sizeof

    def resolve_function_type(function: Any, args: Any, kws: Any) -> Any:
        if isinstance(function, types.Dispatcher):
            return resolve(function, args, kws)
        key = (function, tuple(args), tuple(dict(kws).items()))
        return _resolved.remember(resolve, key, function, args, kws)

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        key = (self, id(context), tuple(args), tuple(dict(kws).items()))
        return _typed.remember(call_type, key, self, context, args, kws)

    def get_abi_sizeof(llvm_type: Any) -> Any:
        return _sizes.remember(abi_size, str(llvm_type), llvm_type)

    # device functions are compiled for the target, where numba would ask the GPU at hand
    device = SimpleNamespace(compute_capability=compute_capability[:2])
    with (
        _replaced(dispatcher, "get_current_device", lambda: device),
        _replaced(compiler, "CUDACompiler", PlainCompiler),
        _replaced(typing, "resolve_function_type", resolve_function_type),
        _replaced(target, "get_abi_sizeof", get_abi_sizeof),
        _replaced(BaseFunction, "get_call_type", get_call_type),
        _replaced(PostProcessor, "run", _canonicalize),
        # what it mends is left by `with`, which device code cannot have
        _replaced(interpreter, "peep_hole_delete_with_exit", lambda func_ir: func_ir),
        _replaced(lowering.CUDALower, "_find_singly_assigned_variable", _find_singly_assigned),
        _replaced(utils, "pysignature", _python_signature),
    ):
        yield


@contextmanager
def source_lines() -> Iterator[None]:
    """Let device functions be compiled anew, with their source lines, and be forgotten after it."""
    original = dispatcher.CUDADispatcher.compile_device
    before: dict[tuple[Any, Any], Any] = {}

    def compile_device(self: Any, args: Any, return_type: Any = None) -> Any:
        if (self, args) not in before:
            before[self, args] = self.overloads.pop(args, None)
        options = self.targetoptions
        self.targetoptions = {**options, "lineinfo": True}
        try:
            return original(self, args, return_type)
        finally:
            self.targetoptions = options

    try:
        with _replaced(dispatcher.CUDADispatcher, "compile_device", compile_device):
            yield
    finally:
        for (function, args), found in before.items():
            function.overloads.pop(args, None)
            if found is not None:
                function.overloads[args] = found
                found.target_context.insert_user_function(
                    found.entry_point, found.fndesc, [found.library]
                )


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute for a while; what its class has is not written to it."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


_post_process = PostProcessor.run
# by function, while it lives
_python_signatures: WeakKeyDictionary[Any, inspect.Signature] = WeakKeyDictionary()


def _python_signature(function: Any) -> inspect.Signature:
    """Stand in for `inspect.signature`."""
    try:
        found = _python_signatures.get(function)
        if found is None:
            found = _python_signatures[function] = inspect.signature(function)
    except TypeError:
        # it cannot be referred to weakly, or has no signature: the latter is said again
        return inspect.signature(function)
    return found


def _canonicalize(self: Any, emit_dels: bool = False, extend_lifetimes: bool = False) -> None:
    """Stand in for `PostProcessor.run`, without the lifetimes that no pass of PASSES reads."""
    if emit_dels or self.func_ir.is_generator or not is_plain(self.func_ir.func_id.func):
        _post_process(self, emit_dels, extend_lifetimes)
    else:
        self.func_ir.blocks = canonicalize_cfg(self.func_ir.blocks)
        self.func_ir.generator_info = None


def _find_singly_assigned(self: Any) -> None:
    """Find the variables that need no memory: assigned once, and used in that block only.

    Stands in for `CUDALower._find_singly_assigned_variable`, which walks a block for each of them.
    """
    assigned = Counter(
        statement.target.name
        for block in self.blocks.values()
        for statement in block.find_insts(ir.assign_types)
    )
    uses = compute_use_defs(self.blocks)
    elsewhere = set().union(*uses.usemap.values(), must_use_alloca(self.blocks))
    self._singly_assigned_vars = {
        name for name, times in assigned.items() if times == 1 and name not in elsewhere
    }
    self._blk_local_varmap = {}
