"""The stages of a run and the order they go in."""
