"""What the small kernels of a layer of experts do alike: each starts before the one before ends.

Launched programmatically, every block waits for the launch before (griddepcontrol.wait) before it
reads what that wrote and before it writes anything, and only then lets the next launch begin. So
what was written two launches ago is there from the start, and may be read before the wait.
"""

from dataclasses import fields, replace

from ferrum_numba.contract import Kernel
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import is_hopper_or_later
from ferrum_numba.space import space


def chained_space(config, **axes):
    """Return a space in which launches are programmatic, and the same where they are not."""
    return space(config, programmatic=(True, False), **axes)


def refuse_threads(num_threads):
    """Raise an error where a block cannot have so many."""
    if num_threads % 32 or not 32 <= num_threads <= 1024:
        raise ConfigError(
            f"num_threads must be a multiple of 32 up to 1024; got num_threads = {num_threads}"
        )


def even_threads(items, most):
    """Return threads a block, of up to `most`, so that blocks share the items evenly."""
    return round_up(ceil_div(items, ceil_div(items, most)), 32)


class ChainedKernel(Kernel):
    """A kernel of a layer; `space` is its configs, the likeliest to win first."""

    space = ()

    def configs(self, gpu):
        """Return the space: programmatic launches on Hopper and later, plain ones elsewhere."""
        able = is_hopper_or_later(gpu.arch)
        return tuple(c for c in self.space if able or not c.programmatic)

    def refuses(self, problem):
        """Run every problem."""
        return None

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.programmatic and not is_hopper_or_later(gpu.arch):
            return f"a programmatic launch needs sm_90 or later; {gpu.name} is {gpu.arch}"
        special = self.specialise(config, problem)
        for field in fields(config):
            is_for, needed = getattr(config, field.name), getattr(special, field.name)
            if is_for != needed:
                return f"compiled for {field.name} = {is_for}; the problem needs {needed}"
        return None

    def fitted(self, config, problem, gpu):
        """Return a config for a problem, launched programmatically where the GPU can."""
        able = is_hopper_or_later(gpu.arch)
        return replace(self.specialise(config, problem), programmatic=able)
