"""One stage of a ring in shared memory, as the wgmma kernels on the packed layout lay it out."""

from ferrum_numba.division import round_up
from ferrum_numba.layout import begin, regions

# rows of 128 bytes are swizzled, eight together, so a stage begins on a multiple of this
SWIZZLE_BYTES = 1024


class Stage:
    """Places in a stage, in bytes from its begin: x, packed words, scales and zero points.

    A config that is one has tile_m, tile_n and tile_k, group_size and has_zero_points.
    """

    # of an element of x
    x_bytes = 2

    @property
    def scale_rows(self):
        """Rows of scales a stage holds, 0 where there is one scale a column."""
        return 0 if self.group_size < 0 else max(1, self.tile_k // self.group_size)

    @property
    def zero_rows(self):
        """Rows of zero points a stage holds, 0 where a weight has none."""
        return self.scale_rows if self.has_zero_points else 0

    @property
    def w_offset(self):
        """Where the packed words begin, after x."""
        return self.tile_m * self.tile_k * self.x_bytes

    @property
    def s_offset(self):
        """Where the scales begin."""
        return self.w_offset + self.tile_n * self.tile_k // 2

    @property
    def z_offset(self):
        """Where the zero points begin."""
        return self.s_offset + self.scale_rows * self.tile_n * 2

    @property
    def end_offset(self):
        """Where the zero points end, two columns a byte."""
        return self.z_offset + self.zero_rows * self.tile_n // 2

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage."""
        size_bytes: int = self.end_offset
        return round_up(size_bytes, SWIZZLE_BYTES)

    @property
    def stage_map(self):
        """What lies where in a stage."""
        return regions(
            self.stage_bytes,
            begin("x", 0, "rows of x, swizzled"),
            begin("words", self.w_offset, "packed weights"),
            begin("scales", self.s_offset, "of the stage's groups"),
            begin("zero points", self.z_offset, "of the stage's groups"),
            begin("unused", self.end_offset, f"up to a multiple of {SWIZZLE_BYTES}"),
        )
