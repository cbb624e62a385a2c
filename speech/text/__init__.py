"""Text before it is spoken: symbols, normalisation, phonemes, lexicon, SSML, books."""
