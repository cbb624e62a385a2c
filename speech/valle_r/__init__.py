"""VALL-E R (arXiv 2406.07855): codes of speech by a model with a monotonic pointer into the phonemes."""
