"""The epoch loop of every training: train, evaluate, record, save, and end early, by a signal or by a bad loss.

It knows no metric, no loss and no box: what an epoch is, what is measured and what is written is told to `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from utils.system.devices import broadcast_object
from utils.system.process import SafeStop
from utils.system.voice import say
from utils.training.engine import Engine, NonFiniteLoss

Evaluation = tuple[float, dict]  # fitness, and whatever else was measured by name


class EarlyStopping:
    """Says when fitness has not risen for `patience` epochs; 0 never stops. A tie is no rise.

    Call it once per epoch with the epoch's number and fitness; it returns True when the run should stop.
    """

    def __init__(self, patience: int = 100) -> None:
        self.patience = patience or math.inf
        self.best_fitness, self.best_epoch = 0.0, 0
        self.over = False  # what the last call said

    def __call__(self, epoch: int, fitness: float) -> bool:
        if fitness > self.best_fitness:
            self.best_fitness, self.best_epoch = fitness, epoch
        self.over = epoch - self.best_epoch >= self.patience
        return self.over

    def state_dict(self) -> dict:
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch, "over": self.over}

    def load_state_dict(self, state: Mapping) -> None:
        self.best_fitness, self.best_epoch = state["best_fitness"], state["best_epoch"]
        self.over = state.get("over", False)  # runs of before have none


def fit(
    engine: Engine,
    epochs: int,
    train_epoch: Callable[[int, SafeStop], dict],
    evaluate: Callable[[int], Evaluation | None],
    record: Callable[[int, dict, Evaluation | None], None],
    save: Callable[[int, Sequence[str]], None],
    stopper: EarlyStopping,
    first_epoch: int = 0,
    every_epoch: bool = True,
    period: int = 0,
) -> int:
    """Train from `first_epoch` to the last one, or until fitness rises no more.

    A new run is saved before its first batch, so that one that is cut in its first epoch goes on exactly too.

    Args:
        engine: Its balancer is told of each epoch's end, its world says who evaluates, records and saves: `record` and
            `save` are called on the first process alone, `train_epoch` and `evaluate` on all.
        train_epoch: Trains one epoch, calls `stop.check()` between batches, returns what is to be recorded of it.
        evaluate: (fitness, measurements) of the epoch, or None where it is not measured; only the first process's
            answer counts.
        record: Writes down an epoch.
        save: `save(epoch, names)` writes the state after `epoch` (-1: the start) as checkpoints of these names: always
            `last`, `best` where no earlier epoch was as fit and fitness is above 0, `epochN` every `period` epochs.
        stopper: Holds the best fitness; its state belongs into what `save` writes.
        first_epoch: The first epoch to train, above 0 in a resumed run.
        every_epoch: Save after every epoch; False: after the last one.
        period: Keep a checkpoint of its own every so many epochs; 0 never.

    Returns:
        The number of epochs trained now.

    Raises:
        KeyboardInterrupt: A signal asked to stop; the last saved state is whole.
        NonFiniteLoss: A loss or gradient was NaN or infinite.
    """
    main, epoch = engine.world.is_main, first_epoch
    if broadcast_object(first_epoch >= epochs or stopper.over, engine.world):
        return 0  # cut between its last epoch and its end
    try:
        with SafeStop() as stop:
            if main and first_epoch == 0:
                save(-1, ("last",))
            for epoch in range(first_epoch, epochs):
                stop.check()  # a signal that came in the validation before: that epoch is saved
                trained = train_epoch(epoch, stop)
                final, early = epoch == epochs - 1, False
                measured = evaluate(epoch)
                if main:
                    if measured:
                        early = stopper(epoch, measured[0])
                    record(epoch, trained, measured)
                engine.balancer.end_epoch()
                if main and (every_epoch or final or early):
                    best = measured is not None and measured[0] > 0 and stopper.best_epoch == epoch
                    kept = period > 0 and epoch % period == 0
                    save(epoch, ("last", *["best"] * best, *[f"epoch{epoch}"] * kept))
                if broadcast_object(early, engine.world):
                    say(f"Stopped: no better fitness in the last {stopper.patience} epochs (--patience)")
                    break
    except (KeyboardInterrupt, NonFiniteLoss) as problem:
        say(f"\n{'Interrupted' if isinstance(problem, KeyboardInterrupt) else 'Stopped'} in epoch {epoch}")
        raise
    return epoch - first_epoch + 1
