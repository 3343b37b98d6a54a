"""Words for people that many rooms print."""


def counted(number: int, noun: str) -> str:
    """Return a number of things, in words whose plural is an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
