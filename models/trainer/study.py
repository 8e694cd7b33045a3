"""What one platform's training shares: its windows, and results kept in the work folder.

Every result is kept under a digest of all that it depends on, so that an interrupted run goes on where it stopped, and
results that do not need one another can be computed side by side.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import linear
from .data import Window
from .evaluate import BUDGETS, Scored, roc_auc

started = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - started:6.0f} s] {text}", flush=True)


@dataclass
class Result:
    """Arrays by name, computed when they are not in the work folder; `key` holds all that they depend on but the data."""

    name: str
    key: dict
    compute: Callable[[], dict[str, np.ndarray]]


@dataclass
class Study:
    """What every step needs: the windows, and those among them that are tested. Figures are the corpus' alone, whose windows
    come before those of recordings of one's own."""

    platform: str
    windows: list[Window]
    work: Path
    data_digest: str

    def __post_init__(self):
        self.is_tested = np.array([w.view == "all" for w in self.windows], bool)
        self.tested = [w for w in self.windows if w.view == "all"]
        self.is_own = np.array([w.own for w in self.tested], bool)
        self.corpus = [w for w in self.tested if not w.own]
        self.scored = Scored(self.corpus)
        self.names = np.array([w.recording for w in self.windows])
        self.tested_names = self.names[self.is_tested]
        self.tested_label = np.array([w.label for w in self.tested])

    @cached_property
    def instances(self) -> linear.Instances:
        """Processes as rows of flags: made when something is to be fitted on them."""
        return linear.Instances(self.windows)

    def of(self, recordings: list[str]) -> list[Window]:
        chosen = set(recordings)
        return [w for w in self.windows if w.recording in chosen]

    def path(self, result: Result) -> Path:
        text = json.dumps({**result.key, "data": self.data_digest}, sort_keys=True)
        return self.work / f"{result.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"

    def missing(self, result: Result) -> bool:
        return not self.path(result).exists()

    def get(self, result: Result) -> dict[str, np.ndarray]:
        path = self.path(result)
        if path.exists():
            with np.load(path) as kept:
                return dict(kept)
        made = result.compute()
        # Another process may be at the same result: each writes a file of its own, and the last one stays.
        partial = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez_compressed(partial, **made)
        partial.rename(path)
        return made

    def prepare(self, results: list[Result], jobs: int) -> None:
        """Computes what is missing, `jobs` at a time, each in a process of its own. Nothing depends on `jobs`."""
        results = [r for r in results if self.missing(r)]
        if jobs < 2 or len(results) < 2:
            for r in results:
                self.get(r)
            return
        global at_work
        at_work = (self, results)
        # Forked, they share the windows; chunks of one, because results differ in length.
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            for _ in pool.imap_unordered(compute_one, range(len(results)), chunksize=1):
                pass

    def summary(self, score: np.ndarray) -> dict:
        """The figures of one score: areas, detections at false-alert budgets, transfer of thresholds."""
        label, score = self.tested_label[~self.is_own], score[~self.is_own]
        counted = np.array([w.full if self.platform == "linux" else not w.snippet for w in self.corpus])
        out = {"scenarios": self.scored.scenarios, "detected": self.scored.curve(score), "budgets": list(BUDGETS)}
        out["roc_auc"] = roc_auc(score[(label == 1) & counted], score[(label == 0) & counted])
        out["roc_auc_all"] = roc_auc(score[label == 1], score[label == 0])
        out["transfer"] = list(self.scored.transfer(score, 2))
        return out


#: Study and results of the pool's processes, which inherit it.
at_work: tuple[Study, list[Result]] | None = None


def compute_one(index: int) -> None:
    study, results = at_work
    study.get(results[index])
