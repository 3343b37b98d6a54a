"""The tests here read one export."""

from small_export import exported

__all__ = ["exported"]
