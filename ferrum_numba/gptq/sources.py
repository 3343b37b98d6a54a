"""The places where a checkpoint says how it was quantised, and what they say together.

Whatever two of them say of the same thing must agree, but for what changes no weight: a head that
is quantised or not is seen by its tensors, and of GPTQ's two formats either will do where `sym`
says that stored zero points do not count, in any layer (optimum writes "gptq" into one file and
"gptq_v2" into the other). There the first place counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ferrum_numba.door import shown
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.on_disk import read_json

FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")
MODEL_FILE, SECTION = "config.json", "quantization_config"
# compressed-tensors' name of it, in its first releases
OLD_SECTION = "compression_config"
# what a head is, its tensors show
HARMLESS = ("lm_head",)
ZERO_POINT_FORMATS = {"gptq", "gptq_v2"}

# name of a place, and what a config says there
Said = tuple[str, Mapping[str, Any]]


def found_in(folder: Path) -> list[tuple[str, Any]]:
    """Return every config of a folder with the name of its place, in the order in which they count.

    Raises:
        CheckpointError: there is none, all are empty, or a file is damaged.
    """
    configs = [
        (str(path), read_json(path)) for path in (folder / n for n in FILES) if path.exists()
    ]
    model = folder / MODEL_FILE
    if model.exists():
        configs += _sections(read_json(model), f"{model}: ")
    if not configs:
        raise CheckpointError(
            f"{folder} has no {FILES[0]} and no {MODEL_FILE} with a {SECTION}; "
            "a quantised checkpoint needs one of them"
        )
    # what is no object is another error
    if all(found == {} for _, found in configs):
        raise CheckpointError(f"{configs[0][0]} says nothing of how it was quantised; it is empty")
    return configs


def merged(places: Sequence[Said]) -> dict[str, Any]:
    """Return what several places say together.

    Raises:
        CheckpointError: two contradict each other; it names both and their values.
    """
    values: dict[str, Any] = {}
    told_by: dict[str, str] = {}
    symmetric = all(_symmetric(said) for _, said in places)
    for source, said in places:
        for key, value in said.items():
            if values.get(key) is None:
                values[key], told_by[key] = value, source
            elif value is not None and value != values[key] and not (
                key in HARMLESS
                or (key == "checkpoint_format" and symmetric
                    and {value, values[key]} <= ZERO_POINT_FORMATS)
            ):  # fmt: skip
                raise CheckpointError(
                    f"{told_by[key]} and {source} contradict each other: {key} is "
                    f"{_shown(values[key])} in the one, {_shown(value)} in the other"
                )
    return values


def _symmetric(said: Mapping[str, Any]) -> bool:
    """Tell whether a config says of every layer that its zero points do not count."""
    # a rule says False by either of its keys
    rules = [rule.changes or {} for rule in said.get("rules", ())]
    return said.get("sym") is True and not any(
        changes.get("sym") is False or changes.get("zero_point") is True for changes in rules
    )


def _sections(model: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """Yield the section of a model's config, and those of its parts, such as text_config."""
    for key, value in model.items():
        if key in (SECTION, OLD_SECTION) and value is not None:
            inner = value.get(SECTION) if isinstance(value, dict) else None
            yield f"{place}{key}", value if inner is None else inner
        elif isinstance(value, dict):
            yield from _sections(value, f"{place}{key}.")


def unquantised(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's config without what it says of its quantisation, wherever it does."""
    return {
        key: unquantised(value) if isinstance(value, dict) else value
        for key, value in model.items()
        if key not in (SECTION, OLD_SECTION)
    }


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} rules"
    return shown(value)
