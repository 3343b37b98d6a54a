"""The designs' colours are told apart by eyes of each kind, on white and on a dark page."""

import itertools

import numpy as np
import pytest

from ferrum_numba.roofline.style import COLOURS, MARKERS, design_styles

# what is left of red, green and blue (linear): Machado, Oliveira and Fernandes, 2009, severity 1
EYES = {
    "all": np.eye(3),
    "no-red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "no-green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                 [-0.011820, 0.042940, 0.968881]],
    "no-blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
WHITE, DARK = "#ffffff", "#0d1117"
# of CIELAB: 2.3 is just noticed side by side; lines of a figure are apart
TOLD_APART = 12.0
CONTRAST = 2.2


def linear(colour):
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def seen(colour, eye):
    """Return a colour in CIELAB as an eye sees it."""
    xyz = TO_XYZ @ np.clip(np.array(EYES[eye]) @ linear(colour), 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def luminance(colour):
    return float((TO_XYZ @ linear(colour))[1])


@pytest.mark.parametrize("eye", EYES)
def test_no_two_colours_look_alike(eye):
    for one, other in itertools.combinations(COLOURS, 2):
        assert np.linalg.norm(seen(one, eye) - seen(other, eye)) > TOLD_APART, (one, other)


def test_colours_are_seen_on_white_and_on_a_dark_page():
    for colour in COLOURS:
        assert (luminance(WHITE) + 0.05) / (luminance(colour) + 0.05) > CONTRAST, colour
        assert (luminance(colour) + 0.05) / (luminance(DARK) + 0.05) > CONTRAST, colour


def test_a_marker_tells_designs_apart_besides():
    styles = design_styles(f"design{i}" for i in range(len(COLOURS)))
    assert len({marker for _, marker in styles.values()}) == len(COLOURS) == len(MARKERS)
