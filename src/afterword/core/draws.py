"""Uniform numbers that depend on (seed, sibling, position) and on nothing else (D2)."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: int) -> int:
    """The finaliser of SplitMix64, a bijection of 64-bit integers that scatters every bit."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, sibling: int, position: int, *, second: bool = False) -> float:
    """Returns a number in [0, 1) with 53 bits for one draw. ``seed`` is any int64 or uint64.

    A position has a ``second`` number, independent of the first, for draws before the draw.
    """
    key = mix64(mix64(mix64(seed) ^ sibling) ^ position)
    if second:
        key = mix64(key)
    return float(key >> 11) * 2.0**-53
