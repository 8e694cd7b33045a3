"""How the parts of a score become a probability: scales, weights and the curve, decided on out-of-fold scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import linear
from .calibrate import Curve, fit_curve
from .data import AMBIGUOUS, Window
from .evaluate import Scored
from .net import Detector, Gat, LinearHead, Shape
from .study import Study

#: False alerts on the whole dev corpus that the alert threshold may cost, out of fold.
BUDGET = 1
#: And benign windows of recordings of one's own to a false alert there: one in four host-hours.
OWN_WINDOWS = 480

#: Weights of the parts, by how many there are: GAT and linear head, or the linear head alone.
MIX = {1: (1.0,), 2: (0.5, 0.5)}

#: The parts of one model's score, one value a tested window each: GAT and linear head, or the linear head alone.
Parts = list[np.ndarray]


def standard(scored: Scored, score: np.ndarray) -> tuple[float, float]:
    """Median and spread of benign windows: puts read-outs on one scale."""
    benign = score[scored.benign]
    benign = benign[benign > -20]
    if not len(benign):
        return 0.0, 1.0
    return float(np.median(benign)), float(max(benign.std(), 1e-3))


def combined(parts: Parts, scales: list[tuple[float, float]]) -> np.ndarray:
    """The weighted sum of the parts, each on the scale of benign windows."""
    return sum(m * (p - c) / s for m, p, (c, s) in zip(MIX[len(parts)], parts, scales))


def between(corpus: Scored, own: Scored, score: np.ndarray, budget: int) -> float:
    """A threshold for the budgets, as far from the last benign window as from the corpus' next scenario, but at most
    half a spread of benign windows above."""
    threshold, peaks = corpus.threshold(score, budget), corpus.peaks(score)
    if len(own.benign):
        ordinary = score[len(corpus.windows) :]
        threshold = max(threshold, own.threshold(ordinary, max(1, round(len(own.benign) / OWN_WINDOWS))))
    return (threshold + peaks[peaks > threshold].min(initial=threshold + 1)) / 2


def calibration_mass(windows: list[Window]) -> np.ndarray:
    """1 for the windows that calibration is fitted and judged on: the corpus', labelled, with their background around them."""
    return np.array([float(w.label != AMBIGUOUS and not w.snippet and not w.own) for w in windows])


@dataclass
class Reading:
    """How parts become a probability: decided on the windows of `use` only."""

    scales: list[tuple[float, float]]
    curve: Curve

    @classmethod
    def of(cls, study: Study, runs: list[Parts], use: np.ndarray) -> Reading:
        """Scales and curve from the out-of-fold parts of every run, taken together."""
        windows = [w for w, u in zip(study.tested, use) if u]
        every, corpus, own = Scored(windows), Scored([w for w in windows if not w.own]), Scored([w for w in windows if w.own])
        # False alerts come of benign hosts: the budget is shared out by them.
        budget = round(BUDGET * corpus.hosts / study.scored.hosts)
        scales = [tuple(np.mean([standard(every, run[k][use]) for run in runs], 0)) for k in range(len(runs[0]))]
        scores = [combined([p[use] for p in run], scales) for run in runs]
        threshold = float(np.mean([between(corpus, own, z, budget) for z in scores]))
        label = np.array([w.label for w in windows])
        counted = calibration_mass(windows) > 0
        z = np.concatenate([z[counted] for z in scores])
        y = np.tile(label[counted].astype(float), len(scores))
        return cls(scales, fit_curve(z, y, np.ones(len(y)), threshold))

    def probability(self, parts: Parts) -> np.ndarray:
        return self.curve.probability(combined(parts, self.scales))


def assemble(head: linear.Fit, gat: Gat | None, reading: Reading) -> Detector:
    """One detector; without a GAT its place is taken by a small one of weight 0."""
    if gat is None:
        torch.manual_seed(0)
        gat = Gat(Shape(hidden=16, layers=1, embedding=4))
        with torch.no_grad():
            gat.tokens.zero_()
            gat.trees.zero_()
        weights = [0.0, *(m / s for m, (_, s) in zip(MIX[1], reading.scales))]
    else:
        weights = [m / s for m, (_, s) in zip(MIX[2], reading.scales)]
    detector = Detector(gat, LinearHead())
    head.store(detector.linear)
    with torch.no_grad():
        detector.gain.copy_(torch.tensor(weights))
        detector.offset.fill_(-sum(m * c / s for m, (c, s) in zip(MIX[len(reading.scales)], reading.scales)))
        reading.curve.store(detector.calibration)
    return detector
