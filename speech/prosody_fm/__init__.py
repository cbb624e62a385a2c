"""ProsodyFM (arXiv 2412.11795): mels by flow matching, with phrase breaks and intonation tokens."""
