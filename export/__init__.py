"""Deployment formats, both ways: write a network to a file, read it back, run it."""
