"""Prompt-guided pooling of a video's tokens (PPLLaVA)."""
