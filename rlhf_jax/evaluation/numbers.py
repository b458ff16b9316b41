"""Numbers as people read them."""


def with_unit(number: float | int) -> str:
    """Three figures and k, M or B (10³, 10⁶, 10⁹): 262k, 1.33M."""
    number = float(f"{number:.3g}")  # first, so that 999,999 is 1M
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
