"""Balancing the losses of several tasks that share a network: GradNorm, the fixed sum, and others through torchjd.

balancer = build_balancer("gradnorm", num_tasks=2, shared=model.shared_parameters(), alpha=1.5)
for images, ... in loader:
    losses = ...                                      # one scalar per task, means per picture
    balancer.backward(losses, batch_size, scaler)     # in place of loss.backward()
    ...
    optimizer.step()
    balancer.step()                                   # after each optimiser step
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "Balancer": "base",
    "Fixed": "fixed",
    "GradNorm": "gradnorm",
    "BALANCERS": "options",
    "add_balancer_arguments": "options",
    "build_balancer": "build",
    "build_balancer_from_args": "build",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Imports what is asked for: the command line's options need no PyTorch, which takes seconds to import."""
    if name in _PLACES:
        return getattr(import_module(f"utils.balancing.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
