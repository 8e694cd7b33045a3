"""From scores to probabilities: a monotone curve through the alert threshold, fitted on out-of-fold scores.

One slope cannot serve: far above and far below the threshold scores saturate, and a straight line that is steep
enough there is wrong beside the threshold. So the curve has several segments on each side of it: with three below, windows
just below the threshold, most of which are attacks, pulled the whole curve with them.

What `attack_prob` says depends on how many windows are attacks. Here it is the share in the labelled windows of
the corpus (about four in ten); where attacks are rarer, as everywhere else, read it as evidence and not as odds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from .net import FLOOR, Calibration

#: The alert threshold of the product (`alerts.min_threshold`): the curve passes through it.
ALERT_PROBABILITY = 0.7
ALERT_LOGIT = float(np.log(ALERT_PROBABILITY / (1 - ALERT_PROBABILITY)))
#: Least rise of the logit per unit of score: the curve never merges two scores.
LEAST_SLOPE = 0.02
#: Knots lie at these shares of the scores below the threshold and of those above it.
BELOW, ABOVE = (0.25, 0.5, 0.75, 0.9), (0.1, 0.3, 0.6)
#: Most rise of the logit within a segment: hundreds of windows say no more.
MOST_LOGIT = 6.0


@dataclass
class Curve:
    """Logits at knots; straight between them and beyond the last."""

    knots: np.ndarray
    values: np.ndarray

    @property
    def slopes(self) -> np.ndarray:
        """Of each segment; the last goes on as the one before it."""
        s = np.diff(self.values) / np.diff(self.knots)
        return np.append(s, s[-1])

    def logit(self, score: np.ndarray) -> np.ndarray:
        steps = np.maximum(np.asarray(score, float)[:, None] - self.knots, 0)
        return self.values[0] + steps @ np.diff(self.slopes, prepend=0.0)

    def probability(self, score: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-self.logit(score)))

    def store(self, module: Calibration) -> None:
        import torch

        module.knots.copy_(torch.from_numpy(self.knots))
        module.slopes.copy_(torch.from_numpy(np.diff(self.slopes, prepend=0.0)))
        module.offset.fill_(float(self.values[0]))


def fit_curve(score: np.ndarray, label: np.ndarray, weight: np.ndarray, threshold: float) -> Curve:
    """The likeliest curve through (`threshold`, the alert probability); labels are 0 and 1."""
    below, above = score[(score < threshold) & (score > FLOOR)], score[score >= threshold]

    def quantiles(of: np.ndarray, shares: tuple[float, ...], otherwise: float) -> list[float]:
        return np.quantile(of, shares).tolist() if len(of) else [otherwise] * len(shares)

    low, high = quantiles(below, BELOW, threshold - 1), quantiles(above, ABOVE, threshold + 1)
    knots = np.array([FLOOR, *low, threshold, *high, float(score.max())])
    middle = 1 + len(low)
    # Two knots never coincide, and the threshold stays where it is.
    for k in reversed(range(1, middle)):
        knots[k] = min(knots[k], knots[k + 1] - 1e-3)
    for k in range(middle + 1, len(knots)):
        knots[k] = max(knots[k], knots[k - 1] + 1e-3)
    gaps = np.diff(knots)

    def values(rise):
        steps = np.append(0.0, np.cumsum(rise))
        return ALERT_LOGIT + steps - steps[middle]

    def loss(rise):
        logit = np.interp(score, knots, values(rise))
        return (weight * np.logaddexp(0, -(2 * label - 1) * logit)).sum() / weight.sum() + 1e-4 * (rise @ rise)

    bounds = [(LEAST_SLOPE * gap, LEAST_SLOPE * gap + MOST_LOGIT) for gap in gaps]
    start = np.array([max(1.0, b[0]) for b in bounds])
    rise = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    return Curve(knots, values(rise))
