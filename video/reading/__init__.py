"""Prompt-guided pooling of video tokens (PPLLaVA) in stock vision-language models, and what is compared with it."""
