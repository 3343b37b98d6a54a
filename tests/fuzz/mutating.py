"""Mutations: of bytes, of JSON by its structure, and of patterns; every one follows from a seed."""

import json
import random

# values that some reader, somewhere, did not expect
HOSTILE = (
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 16, 2**31, 2**32, 2**53, 2**63, 2**64,
    10**19, 10**30, 10**400, -(2**63), 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    float("-inf"), "", "x",
    "0", "a" * 300, "../../x", "/dev/zero", "a\0b", "\ud800", "\x1b[2J", "ünï", "sm_90a", "sm_1",
    "banana", "2026-01-01T00:00:00+00:00", "9" * 5000, [], {}, [[]], [None], [1, 2, 3], {"": {}},
    ["x"] * 70, [1] * 70, {"a": {"a": {"a": []}}},
)  # fmt: skip
DEEP = "\0deep\0"
PIECES = (
    "a", "b", ".", ".*", r"\.", r"\d+", r"\w*", "(?:", "(", ")", "|", "*", "+", "?", "{2}", "{1,3}",
    "{999}", "{0,30}", "[a-z]", "[^.]", "[", "]", "^", "$", "(?!", "(?=", "(?<=", r"\b", r"\1",
    "(?P<n>", "(?i)", "model", "layers", "mlp", "experts", "+?", "*+", r"\N{DIGIT ONE}",
    "[[:alpha:]]",
    "\\", "é",
)  # fmt: skip


def of_bytes(rng, data):
    """Return bytes with a few of them changed, cut, doubled or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randrange(len(data) + 1)
        what = rng.randrange(6)
        if what == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif what == 1 and place < len(data):
            data[place] = rng.randrange(256)
        elif what == 2:
            del data[place : place + rng.randrange(1, 64)]
        elif what == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 16))
        elif what == 4:
            start = rng.randrange(len(data) + 1)
            data[place:place] = data[start : start + rng.randrange(1, 256)]
        else:
            del data[place:]
    return bytes(data)


def of_json(rng, text):
    """Return JSON of which one to three nodes are others, or gone, or twice there."""
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not isinstance(tree, dict | list):
            break
        tree = _changed(rng, tree)
    depth = rng.choice((60, 70, 900, 100_000))
    nest = "[" * depth + "]" * depth
    return json.dumps(tree).replace(json.dumps(DEEP), nest).encode()


def _changed(rng, tree):
    places = list(_places(tree))
    if not places:
        return _value(rng)
    holder, key = rng.choice(places)
    what = rng.randrange(8)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[_text(rng)] = holder.pop(key)
    elif what == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif what == 3:
        # of another place of the same file: of a right type, and wrong all the same
        other, there = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[there]))
    elif what == 4:
        holder[key] = [holder[key]]
    else:
        holder[key] = _value(rng)
    return tree


def _value(rng):
    return DEEP if rng.randrange(200) == 0 else json.loads(json.dumps(rng.choice(HOSTILE)))


def _text(rng):
    return rng.choice([value for value in HOSTILE if isinstance(value, str)])


def _places(tree):
    """Yield (holder, key) of every node below the root, of a big file some."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def pattern(rng):
    """Return a text that is more often than not a regular expression."""
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 16)))


def random_of(seed, number):
    """Return the random numbers of one execution."""
    return random.Random(f"{seed}/{number}")
