"""What a network's outputs can be at most and at least when its input is anywhere in a box.

:func:`~robustcompress.robustness.bounds.tracing.trace_network` turns a network into a graph,
:func:`~robustcompress.robustness.bounds.interval.propagate` sends a box through it, and ``interval``,
``crown`` and ``symbolic`` turn what came out into lower bounds of the margins ``f_y - f_j``.
"""
