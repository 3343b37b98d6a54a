"""The tile of a block whose warpgroups multiply with wgmma while other warps copy."""

from ferrum_numba.division import round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.stage import Stage
from ferrum_numba.layout import begin

# the warps that multiply, and those that copy: two warpgroups and one, as `setmaxnreg` wants it
CONSUMER_WARPS, PRODUCER_WARPS = 8, 4
# a warp's registers a thread: as many for the accumulators as those that copy leave
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40
# K of a panel of a stage
PANEL_K = 64
# rows of x that blocks at work together share, as far as there are so many
BAND_ROWS = 1024
# rows of a tile that leave it at once
MOST_PART_ROWS = 64
# sums of a tile: 192 registers a thread
MOST_SUMS = 192 * 256
# rows of a tile whose sums are scaled: two sets more that wait for it, and two of operand A
MOST_SCALED_ROWS = 64


class Tile(Stage):
    """A tile of tile_m rows of x and tile_n columns of the weight, and the ring that feeds it.

    A config that is one has what a `Stage` has, num_stages, scale_sums and dtype. Where it says
    nothing else, a block shares neither a tile nor x with others.
    """

    tile_m: int
    tile_n: int
    num_stages: int
    scale_sums: bool
    group_size: int
    dtype: str
    cluster: int = 1
    pair: bool = False
    # what tile_m is a multiple of: pieces in which a tile leaves
    row_multiple = 16

    def refuse(self) -> None:
        """Raise a `ConfigError` where there is no such tile."""
        if self.tile_n not in (128, 256):
            raise ConfigError(f"tile_n must be 128 or 256; got {self.tile_n}")
        if self.tile_m % self.row_multiple or not 16 <= self.tile_m <= 256:
            raise ConfigError(
                f"tile_m must be a multiple of {self.row_multiple} from 16 to 256; "
                f"got {self.tile_m}"
            )
        # what the accumulators leave of a consumer's registers
        if self.tile_m * self.tile_n > MOST_SUMS:
            raise ConfigError(
                f"tile_m x tile_n must be at most {MOST_SUMS}; got {self.tile_m} x {self.tile_n}"
            )
        if self.scale_sums and (self.tile_n < 256 or self.tile_m > MOST_SCALED_ROWS):
            raise ConfigError(
                f"sums are scaled in tiles of 256 columns and up to {MOST_SCALED_ROWS} rows; got "
                f"tile_n = {self.tile_n}, tile_m = {self.tile_m}"
            )
        if self.num_stages < 2:
            raise ConfigError(f"num_stages must be at least 2; got {self.num_stages}")
        layout.refuse_kind(self.group_size, self.dtype)

    @property
    def strips(self) -> int:
        """Strips of 16 columns a warp, and blocks of 64 a warpgroup."""
        return self.tile_n // 128

    @property
    def unit_blocks(self) -> int:
        """Blocks that go from tile to tile together."""
        return 1

    @property
    def unit_n(self) -> int:
        """Columns of a tile of theirs."""
        return self.unit_blocks * self.tile_n

    @property
    def tile_k(self) -> int:
        """K a stage: one or two panels, whose rows of x are what the swizzle repeats in."""
        return 2 * PANEL_K if self.scale_sums else PANEL_K

    @property
    def num_threads(self) -> int:
        """Threads a block: two warpgroups that multiply and one that copies."""
        return 32 * (CONSUMER_WARPS + PRODUCER_WARPS)

    @property
    def in_flight(self) -> int:
        """Groups of products that run while the next is dequantised."""
        return self.in_flight_of(self.tile_m)

    def in_flight_of(self, rows: int) -> int:
        """Return the same where only so many of the tile's rows are multiplied."""
        return 3 if self.strips * rows <= 256 else 1

    @property
    def raster(self) -> int:
        """Rows of tiles in a band."""
        return max(1, BAND_ROWS // self.tile_m)

    @property
    def bars_offset(self) -> int:
        """Where the barriers begin, two of 8 bytes a stage."""
        return self.num_stages * self.stage_bytes

    @property
    def out_offset(self) -> int:
        """Where the part of a tile lies that is on its way out."""
        return round_up(self.bars_offset + 16 * self.num_stages, 128)

    @property
    def ring_map(self):
        """What lies where in the shared memory before `out_offset`: begins of regions."""
        barriers = 16 * self.num_stages
        return (
            begin("ring", 0, "stages that the copying warps fill", self.num_stages, self.stage_map),
            begin("barriers", self.bars_offset, "two mbarriers a stage", self.num_stages),
            begin("unused", self.bars_offset + barriers, "up to a multiple of 128"),
        )

    @property
    def part_rows(self) -> int:
        """Rows of a tile that leave it at once."""
        return min(self.tile_m, MOST_PART_ROWS)

    @property
    def out_row_bytes(self) -> int:
        """Bytes from one row of a warpgroup's columns to the next, on their way out."""
        return 128 * self.strips + 16  # 16: rows start four banks apart

    @property
    def part_bytes(self) -> int:
        """Bytes of a warpgroup's columns of a part."""
        return self.part_rows * self.out_row_bytes
