"""A disk that is full from some size of a file on, for what this process and its children write."""

import resource
import signal
from contextlib import contextmanager


@contextmanager
def files_of_at_most(size_bytes):
    """Make the system refuse what makes a file longer: "File too large"."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder):
    """Return what a folder, or a file, holds, by path."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): path.read_bytes() for path in sorted(paths) if path.is_file()}


def limits_of(written, most):
    """Return sizes at which a write is the first that fails, spread over all there are."""
    sizes = sorted({len(content) for content in written.values()})
    limits = sorted({0, *(size - 1 for size in sizes), *(size // 2 for size in sizes)})
    return limits[:: max(1, len(limits) // most)]
