"""Programs for processes of their own in which a layer runs, and what they may not have loaded."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
# of the compiler, and what needs it
COMPILER = {"numba", "llvmlite", "numba_cuda", "greenlet", "ferrum_numba.ptx", "ferrum_numba.tune"}
ON_THE_HOST = """
import json, sys
from ferrum_numba import MarlinLinear
sys.path.insert(0, sys.argv[1])
from quantised import assert_close, layer, reference, rows
tensors = layer(256, 128, 128)
assert_close(MarlinLinear.from_gptq(tensors, device="cpu")(rows(3, 256)),
             reference(tensors, rows(3, 256)))
print(json.dumps({"modules": sorted(sys.modules)}))
"""
# K, N, M and more of a layer, on a GPU that takes cubins and runs none
ON_A_GPU = """
import json, sys, time
from ferrum_numba import MarlinLinear
sys.path.insert(0, sys.argv[1])
import shipped_driver
from quantised import layer, rows
K, N, M, kind = json.loads(sys.argv[2])
host = shipped_driver.install(shipped_driver.ForGood())
linear = MarlinLinear.from_gptq(layer(K, N, 128, **kind))
x = rows(M, K)
# processor time, because other tests run beside this one
began = time.process_time()
linear(x)
first_s = time.process_time() - began
print(json.dumps({"modules": sorted(sys.modules), "launched": host.launched, "first_s": first_s}))
"""


def packages(modules):
    """Return the packages of modules, and those one level down."""
    return {".".join(name.split(".")[:depth]) for name in modules for depth in (1, 2)}
