"""The released SADM code's networks, loss and sampler, which load its state dicts."""
