"""Speech as codes: EnCodec with a merged residual quantiser, and a codec over mels."""
