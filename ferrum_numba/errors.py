"""Every error that is raised and every warning that is given on purpose, in one place.

A message says what was got and what is needed, in the user's numbers, lower case, one sentence.
The command line prints it and exits with status 2; a traceback means a bug of ours.
"""

# what a remark on doubles in a kernel ends with
AGAINST_DOUBLES = (
    "write float32(...) around what makes it a double: a float literal, an integer beside a float, "
    "uint64 beside int64"
)
# what is to be done with a plain function that a kernel calls
DECORATE = "decorate it with @cuda.jit(device=True, forceinline=True)"


class FerrumError(Exception):
    """Base of all errors that are somebody's mistake or the machine's limit, not a bug."""


class ConfigError(FerrumError, ValueError):
    """A config that can run on no problem: its fields contradict each other."""


class ProblemError(FerrumError, ValueError):
    """A problem, shape, dtype or group size that the kernel or the Op does not support."""


class DeviceError(FerrumError, RuntimeError):
    """No GPU, an unknown GPU, or one that cannot run what was asked."""


class BuildError(FerrumError, RuntimeError):
    """A kernel that did not compile; the compiler's own words are in the message."""


class ToolchainError(BuildError):
    """No kernel compiles here: what is wrong, and the command that brings what is missing.

    It concerns every build, so nothing goes on after it.
    """

    def __init__(self, what: str, command: str) -> None:
        super().__init__(what, command)
        self.what, self.command = what, command

    def __str__(self) -> str:
        return f"no kernel compiles here: {self.what}; {self.command}"


class LaunchError(FerrumError, RuntimeError):
    """A kernel that the driver refused to launch, or that failed while running."""


class CaptureError(LaunchError):
    """Something that was not prepared, and cannot be while a graph is captured."""


class ContextError(LaunchError):
    """A failure that poisons the CUDA context: nothing runs in this process any more."""


class InterpreterError(FerrumError, RuntimeError):
    """A kernel broke a rule of the machine under the interpreter; the message names the line."""


class RaceError(InterpreterError):
    """Two accesses to the same bytes that nothing orders; the message names both lines."""


class MismatchError(FerrumError, AssertionError):
    """A result that differs from its reference by more than the Op's tolerance."""


class StoreError(FerrumError, ValueError):
    """A result or cache file that is damaged or of another schema."""


class CheckpointError(FerrumError, ValueError):
    """A checkpoint's file, index or config that is missing, damaged or of an unknown format."""


class ZeroOverflowWarning(UserWarning):
    """Zero points of a GPTQ v1 checkpoint that tools read in different ways."""


class PrecisionWarning(UserWarning):
    """Values that lose much of their precision in the type that was asked for."""
