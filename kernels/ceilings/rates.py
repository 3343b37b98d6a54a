"""What a ceiling kernel measures, and how its time becomes the number of a roof."""

from dataclasses import dataclass

# what is at its limit
KINDS = ("DRAM", "L2", "shared memory", "tensor", "ALU", "dequantisation", "latency")


@dataclass(frozen=True)
class Rate:
    """What is counted in a call.

    kind:  one of KINDS
    unit:  "GB/s" of the Op's bytes; "TFLOP/s", "TOP/s" or "10^12 weights/s" of its FLOPs; or "us"
    dtype: what is multiplied, where that decides
    fed:   whether operands come from shared memory at every step
    per:   how many a call has of what takes so many us
    """

    kind: str
    unit: str
    dtype: str = ""
    fed: bool = False
    per: int = 1

    def of(self, us, work):
        """Return the rate of a call, or the us of one of what it repeats."""
        if self.unit == "us":
            return us / self.per
        return work.bytes / us / 1e3 if self.unit == "GB/s" else work.flops / us / 1e6
