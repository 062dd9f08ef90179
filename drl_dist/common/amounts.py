"""Counts and sizes as people read them."""

from __future__ import annotations

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things: ``1 worker``, ``2 workers``, ``0 branches``.

    Args:
        count: how many.
        noun: what one of them is called.
        plural: what several are called, where that is not the noun and an s.
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def short(amount: float, unit: str = "") -> str:
    """An amount in three digits: ``34.8 M``, ``1.2 TFLOP``, ``512``."""
    for size, prefix in _PREFIXES:
        if abs(amount) >= size * 0.9995:
            return f"{amount / size:.3g} {prefix}{unit}"
    return f"{amount:.3g} {unit}".rstrip()


def mebibytes(size: float) -> str:
    """Bytes as ``12 MiB`` or, from 10 GiB on, ``11.3 GiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 10 * 2**30 else f"{max(1, round(size / 2**20))} MiB"


def evenly_spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers from 0 to count - 1, both ends included, in ascending order."""
    gaps = min(count, most) - 1
    return sorted({round(place * (count - 1) / gaps) for place in range(gaps + 1)}) if gaps > 0 else [0]
