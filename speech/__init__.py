"""longtake.speech: speech from a sentence to hours (ProsodyFM, VALL-E R, the long-form engine)."""
