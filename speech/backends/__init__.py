"""Voices that the long-form engine drives: one protocol, ours and those of stock transformers classes."""
