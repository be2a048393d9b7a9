"""Which layer of a network an error came from."""

from collections.abc import Iterator

from torch import nn


def failing_layer(error: BaseException | None) -> str | None:
    """Return the innermost named layer that was running when ``error`` was raised, and its class.

    Whatever copy of the network ran: the modules are found in the traceback. Causes are looked through too.

    Returns:
        Such as ``'blocks.0.attention' (Attention)``; ``None`` if no layer below the network itself ran.
    """
    while error is not None:
        running = list(_running(error))
        for module in reversed(running):
            for outer in running:
                name = next((name for name, inner in outer.named_modules() if inner is module), "")
                if name:
                    return f"{name!r} ({type(module).__name__})"
        error = error.__cause__
    return None


def _running(error: BaseException) -> Iterator[nn.Module]:
    """Yield the modules whose methods were running, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            yield module
        trace = trace.tb_next
