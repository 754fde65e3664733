"""Runs in the lake: their files, their models, their registry."""
