"""What the text of an instruction says: how many there are, which wait, which are one lane's."""

from __future__ import annotations

import re
from functools import cache

from ferrum_numba.interpreter.operands import Plan

# what a lane may have to wait at; polling (`ld.acquire` in a loop) is a load
_WAITS = re.compile(
    r"\b(?:bar\.sync|barrier\.cluster\.wait|mbarrier\.try_wait|cp\.async\.wait_group"
    r"|wgmma\.wait_group|griddepcontrol\.wait)\b"
)
# one lane executes these for all, so that the others are idle is meant
_OF_ONE_LANE = re.compile(r"\b(?:mbarrier|cp\.async\.bulk|tensormap|st\.async|griddepcontrol)\b")
# `.reg .b32 a` declares, `again:` is a label
_NO_INSTRUCTION = re.compile(r"^(?:\.|\w+:$|$)")
_LABEL = re.compile(r"^\w+:\s*")


@cache
def count(plan: Plan) -> int:
    """Return how many PTX instructions a plan stands for; a loop's once."""
    statements = re.split(r"[;{}\n]", re.sub(r"\{[^;{}]*\}", "v", plan.text))
    parts = (_LABEL.sub("", one.strip()) for one in statements)
    return max(sum(not _NO_INSTRUCTION.match(one) for one in parts), 1)


@cache
def waits(plan: Plan) -> int:
    """Return at how many places lanes that execute it may wait."""
    return 1 if plan.name == "syncthreads" else len(_WAITS.findall(plan.text))


@cache
def of_one_lane(plan: Plan) -> bool:
    """Tell whether it is made for a lane alone."""
    return bool(_OF_ONE_LANE.search(plan.text))


@cache
def is_matrix(plan: Plan, verb: str) -> bool:
    """Tell whether its loads ("ld") or stores ("st") of shared memory are by rows of matrices."""
    return f"{verb}matrix." in plan.text


@cache
def is_uncounted(plan: Plan) -> bool:
    """Tell whether its accesses are no requests of the warp's loads and stores: a tensor map's."""
    return "tensormap." in plan.text
