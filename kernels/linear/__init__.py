"""Linear attention and scans over ranks (LASP-2), with their fused Triton paths."""
