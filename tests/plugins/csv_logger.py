"""A logger from outside the package: chosen numbers of every logged step as a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from chatbridge.common.loggers import scalars
from chatbridge.common.registry import LOGGERS
from chatbridge.common.schema import key


@dataclass(kw_only=True)
class CsvConfig:
    columns: list[str] = key(["loss", "lr"], help="names of the numbers; those of a mapping as losses/images")


@LOGGERS.register("csv", config=CsvConfig)
class CsvLogger:
    def __init__(self, config):
        self.columns = ["step", "split", *config.columns]

    def start(self, folder, resumed_at, config):
        file, kept = folder / "metrics.csv", []
        if resumed_at and file.exists():
            kept = [row for row in csv.DictReader(file.read_text().splitlines()) if int(row["step"]) <= resumed_at]
        self.file = file.open("w", newline="", buffering=1)
        self.table = csv.DictWriter(self.file, self.columns, extrasaction="ignore")
        self.table.writeheader()
        self.table.writerows(kept)

    def write(self, step, values, split):
        self.table.writerow({"step": step, "split": split, **scalars(values)})

    def close(self):
        self.file.close()
