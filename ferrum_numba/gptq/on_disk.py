"""What a file is before anything is read from it, and the JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ferrum_numba import door
from ferrum_numba.errors import CheckpointError

# how files begin that are not what their names say -> what they are
OTHERS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"GGUF": "is a GGUF file; only safetensors are read",
}
# of a config: that of a model with a rule for each of 10^5 layers is a tenth of it
CONFIG_BYTES = 64 << 20


def other_kind(start: bytes) -> str | None:
    """Return what a file that begins so is, instead of what was expected; None for others."""
    return next((what for magic, what in OTHERS.items() if start.startswith(magic)), None)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object; it names the file.
    """
    try:
        content = door.read_bytes(path, CONFIG_BYTES)
        other = other_kind(content)
        if other is not None:
            raise CheckpointError(f"{path} {other}")
        found = door.parse_json(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except CheckpointError:
        raise
    # what is no UTF-8 is a ValueError too
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {str(error).lower()}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must be a JSON object; got {type(found).__name__}")
    return found
