"""From a mask and a layout to tiles, transfers and a forecast."""
