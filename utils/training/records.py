"""Records of a run: results.csv, training_history.json and TensorBoard events."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.system.files import whole_file
from utils.system.plain import plain
from utils.system.voice import say, warn
from utils.training.table import EpochTable


def _lookup(record: Mapping, path: tuple) -> float | None:
    """The number at `path` in a record, None where it, or what holds it, is missing."""
    value: Any = record
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


class RunLogger:
    """Writes the records of a run, one per epoch, into its folder.

    * `results.csv`: the columns that it is told. What was not measured stays empty.
    * `training_history.json`: {"epochs": [record, ...]}, the whole records.
    * `balancer_trace.csv`: the rows of the records' "trace", several an epoch, which stand nowhere else.
    * TensorBoard events of the same numbers, where the package is installed (one line says so where it is not).

    A record is a dict with the key "epoch"; what a column looks for in it may be missing or None. Numbers may be
    tensors; what is not finite becomes null.
    All files are written anew and atomically at every epoch; those of an earlier run in the same folder are replaced,
    unless `resume` was called first.

    Args:
        save_dir: folder of the run, made if needed.
        columns: column of results.csv -> where an epoch's record has its value, a path of keys; the first is "epoch".
        scalars: the same for what only TensorBoard gets.
        trace: columns of balancer_trace.csv after "epoch"; keys of a row.
        tensorboard: write TensorBoard events.

    Attributes:
        history: the records so far, as plain Python data.
    """

    def __init__(
        self,
        save_dir: str | Path,
        columns: Mapping[str, tuple],
        scalars: Mapping[str, tuple] | None = None,
        trace: Sequence[str] = (),
        tensorboard: bool = True,
    ):
        self.save_dir, self.columns, self.scalars = Path(save_dir), dict(columns), dict(scalars or {})
        self.save_dir.mkdir(parents=True, exist_ok=True)
        self.table = EpochTable(self.save_dir / "results.csv", list(self.columns)[1:])
        self.trace = EpochTable(self.save_dir / "balancer_trace.csv", trace)
        self.history_file = self.save_dir / "training_history.json"
        self.history: list[dict] = []
        self._tensorboard, self._writer, self._first_epoch = bool(tensorboard), None, 0

    def resume(self, epoch: int) -> None:
        """Continue the records found in the folder with `epoch`; records of that and later epochs are dropped.

        Raises:
            ValueError: when the history is damaged; the message says what to do.
        """
        self._first_epoch = int(epoch)
        if self.history_file.exists():
            try:
                self.history = json.loads(self.history_file.read_text(encoding="utf-8"))["epochs"]
                self.history = [record for record in self.history if record["epoch"] < epoch]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.history_file}: not a training history ({error}); move it away to resume without it"
                ) from error
        # Read by themselves, not made anew from the history: that may be gone, or the run may have begun in YOLOv5.
        self.table.resume(epoch)
        self.trace.resume(epoch)

    def epoch(self, record: Mapping) -> None:
        """Write the record of an epoch; one that is already there, and all after it, are replaced.

        A file that cannot be written now (opened elsewhere under Windows, a full disk) does not end the training: a
        line says so, and the next epoch writes everything again.

        Raises:
            TypeError: when the record holds something that is no plain number, text or list.
        """
        record = plain(record, finite=True)
        number, trace = int(record["epoch"]), record.pop("trace", [])
        values = {column: _lookup(record, path) for column, path in self.columns.items()}
        self.history = [r for r in self.history if r["epoch"] < number] + [record]
        writes = {
            self.history_file: self._write_history,
            self.table.file: lambda: self.table.write(number, [values]),
            self.trace.file: lambda: self.trace.write(number, trace),
        }
        for file, write in writes.items():
            try:
                write()
            except OSError as error:
                warn(f"{file} could not be written in epoch {number} ({error}); the next epoch tries again")

        writer = self._events()
        if writer:
            for tag, path in (self.columns | self.scalars).items():
                value = _lookup(record, path)
                if value is not None and tag != "epoch":
                    writer.add_scalar(tag, value, number)
            writer.flush()

    def image(self, tag: str, file: str | Path, step: int = 0) -> None:
        """Add a picture file (.jpg or .png) to the TensorBoard events; a file that cannot be read is left out."""
        import cv2

        writer = self._events()
        if not writer:
            return
        file = Path(file)
        picture = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) if file.is_file() else None
        if picture is not None:
            writer.add_image(tag, picture[..., ::-1], step, dataformats="HWC")

    def graph(self, model, imgsz: int | tuple[int, int] = 640) -> None:
        """Add the network's graph to the TensorBoard events, traced on a copy in evaluation mode.

        The model itself, and with it its batch statistics and its mode, is not touched. A network that cannot be
        traced is left out with a line that says so.
        """
        import torch

        writer = self._events()
        if not writer:
            return
        height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # the tracer warns of every Python number in a forward pass
                network = copy.deepcopy(model).cpu().float().eval()
                picture = torch.zeros(1, 3, height, width)
                writer.add_graph(torch.jit.trace(network, picture, strict=False, check_trace=False), [])
        except Exception as error:  # a picture of the graph is never worth a run
            say(f"TensorBoard: the graph of the network is left out ({type(error).__name__}: {error})")

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._writer:
            self._writer.close()
        self._writer, self._tensorboard = None, False

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write_history(self) -> None:
        # A line per epoch: readable, and a diff of two runs shows the epochs that differ.
        lines = ",\n".join(json.dumps(record, allow_nan=False) for record in self.history)
        with whole_file(self.history_file) as temporary:
            temporary.write_text('{"epochs": [\n' + lines + "\n]}\n", encoding="utf-8", newline="\n")

    def _events(self):
        """TensorBoard's writer, made when the first event is due; None without the package."""
        if self._writer is None and self._tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._tensorboard = False
                say("TensorBoard is not installed, no events are written (pip install tensorboard)")
                return None
            purge = self._first_epoch if self._first_epoch > 0 else None
            self._writer = SummaryWriter(str(self.save_dir), purge_step=purge)
            say(f"TensorBoard: tensorboard --logdir {self.save_dir.parent}")
        return self._writer
