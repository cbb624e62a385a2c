"""longtake.motion: long human motion from short-clip priors (MDM, DoubleTake, ComMDM, DiffusionBlending)."""
