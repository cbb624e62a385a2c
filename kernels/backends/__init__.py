"""Who computes one tile: operators with their capabilities, and why one cannot serve."""
