"""Balancing the losses of several tasks that share a network: GradNorm, the fixed sum, and others through torchjd.

balancer = build_balancer("gradnorm", num_tasks=2, shared=model.shared_parameters(), alpha=1.5)
for images, ... in loader:
    losses = ...                                      # one scalar per task, means per picture
    balancer.backward(losses, batch_size, scaler)     # in place of loss.backward()
    ...
    optimizer.step()
    balancer.step()                                   # after each optimiser step
"""

from utils.balancing.base import Balancer as Balancer
from utils.balancing.fixed import Fixed as Fixed
from utils.balancing.gradnorm import GradNorm as GradNorm
from utils.balancing.options import BALANCERS as BALANCERS
from utils.balancing.options import add_balancer_arguments as add_balancer_arguments
from utils.balancing.options import build_balancer as build_balancer
from utils.balancing.options import build_balancer_from_args as build_balancer_from_args
