"""Answers to whoever asks for an image: exports for other servers."""
