"""Text into symbols: normalisation, phonemes, lexicon, SSML, books."""
