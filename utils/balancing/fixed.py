"""The plain weighted sum of the losses."""

from __future__ import annotations

from utils.balancing.base import Balancer


class Fixed(Balancer):
    """Sum with constant weights; task gradients are measured for the record only.

    A tuned sum is a strong balancer: V. Kurin et al., "In Defense of the Unitary Scalarization for Deep Multi-Task
    Learning", NeurIPS 2022.

    A task of weight 0 is switched off: its loss takes no part in the backward pass. Parameters that no other task
    reaches then keep `grad` None, which is more than a gradient of 0: optimisers pass them over, so that neither weight
    decay nor momentum moves them. Nothing is measured then.

    Args and errors: see `Balancer`.
    """

    name = "fixed"
    takes_zero = True
