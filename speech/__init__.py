"""longtake.speech: long speech from short-utterance models (ProsodyFM, VALL-E R), from a sentence to hours."""
