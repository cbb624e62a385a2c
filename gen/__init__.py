"""longtake: long takes from short-clip generators."""
