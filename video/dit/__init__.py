"""Video transformers (Wan, LTX, HunyuanVideo, CogVideoX and others) on a piece of a longer video."""
