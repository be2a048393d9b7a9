"""A network as a graph: what its layers cost, and what can be folded without changing it."""
