"""A csv file that grows by an epoch at a time: whole at any moment, continued by a resumed run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.system.files import whole_file


class EpochTable:
    """Rows by epoch; the first column is `epoch`. What was not measured stays empty.

    The file is written anew and atomically with every epoch, so one that could not be written once lacks nothing after
    the next. That of an earlier run in the same folder is replaced, unless `resume` was called first.

    Args:
        file: where to write.
        columns: their names, without `epoch`.
    """

    def __init__(self, file: str | Path, columns: Sequence[str]) -> None:
        self.file, self.columns = Path(file), ["epoch", *columns]
        self._rows: list[list[str]] = []

    def resume(self, epoch: int) -> None:
        """Continue the file with `epoch`: rows of that and later epochs are dropped, and so is one that was cut."""
        if not self.file.exists():
            return
        with self.file.open(newline="", encoding="utf-8") as f:
            header, *rows = [[field.strip() for field in row] for row in csv.reader(f)] or [[]]
        rows = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
        kept = [row for row in rows if row.get("epoch", "").isdigit() and int(row["epoch"]) < epoch]
        self._rows = [[row.get(column, "") for column in self.columns] for row in kept]

    def write(self, epoch: int, rows: Sequence[Mapping[str, float | int | None]]) -> None:
        """Add the rows of an epoch, numbers by column; those that are already there, and all after, are replaced.

        A table without a row is no file.

        Raises:
            OSError: the file cannot be written now; the rows are kept.
        """
        self._rows = [row for row in self._rows if int(row[0]) < epoch]
        for row in rows:
            values = [row.get(column) for column in self.columns[1:]]
            fields = ["" if v is None else f"{v:.5g}" if isinstance(v, float) else str(v) for v in values]
            self._rows.append([str(epoch), *fields])
        if not self._rows:
            return self.file.unlink(missing_ok=True)
        with whole_file(self.file) as temporary:
            lines = "".join(map(self._line, [self.columns, *self._rows]))
            temporary.write_text(lines, encoding="utf-8", newline="\n")

    @staticmethod
    def _line(fields: Sequence[str]) -> str:
        # Columns stand under each other as in YOLOv5's file; an empty field has no spaces, so readers take it as NaN.
        return ",".join(f"{field:>20}" if field else "" for field in fields) + "\n"
