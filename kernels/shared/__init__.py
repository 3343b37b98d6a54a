"""What two designs or more use: the packed layout, codes to operands, stripes, hand-over, tiles."""
