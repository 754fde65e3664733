"""Answers to whoever asks for an image: a service over HTTP, exports for other servers."""
