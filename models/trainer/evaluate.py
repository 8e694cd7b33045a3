"""Scenarios detected against false alerts, and areas under curves: pure functions of scores.

A false alert is a run of benign windows of one host at or above the threshold with gaps of at most 300 s.
A scenario is detected if one of its malicious windows is at or above the threshold.
"""

from __future__ import annotations

import numpy as np

from .data import BENIGN, MALICIOUS, Window

MERGE_MS = 300_000
BUDGETS = (0, 1, 2, 4)


class Scored:
    """The windows of one evaluation as arrays, in (segment, end) order, benign and malicious apart."""

    def __init__(self, windows: list[Window]):
        order = sorted(range(len(windows)), key=lambda i: (windows[i].segment, windows[i].end_ms))
        self.windows = windows
        self.benign = np.array([i for i in order if windows[i].label == BENIGN], int)
        self.malicious = np.array([i for i in order if windows[i].label == MALICIOUS], int)
        segments = {}
        self.segment = np.array([segments.setdefault(w.segment, len(segments)) for w in windows])
        self.end = np.array([w.end_ms for w in windows])
        recordings = {}
        self.recording = np.array([recordings.setdefault(w.recording, len(recordings)) for w in windows])
        self.family = np.array([w.family for w in windows])
        self.scenarios = len(set(self.recording[self.malicious]))
        #: Hosts of recordings that have benign windows.
        self.hosts = len(set(self.segment[self.benign]))

    def false_alerts(self, score: np.ndarray, threshold: float, families=None) -> int:
        hits = self.benign[score[self.benign] >= threshold]
        if families is not None:
            hits = hits[np.isin(self.family[hits], families)]
        if not len(hits):
            return 0
        same = self.segment[hits][1:] == self.segment[hits][:-1]
        near = self.end[hits][1:] - self.end[hits][:-1] <= MERGE_MS
        return 1 + int((~(same & near)).sum())

    def peaks(self, score: np.ndarray, families=None) -> np.ndarray:
        """Highest score of each scenario's malicious windows."""
        m = self.malicious if families is None else self.malicious[np.isin(self.family[self.malicious], families)]
        peak = {}
        for i in m:
            peak[self.recording[i]] = max(peak.get(self.recording[i], -np.inf), score[i])
        return np.array(list(peak.values()))

    def threshold(self, score: np.ndarray, budget: float, families=None) -> float:
        """The lowest threshold with at most `budget` false alerts: just above the next benign score."""
        b = self.benign if families is None else self.benign[np.isin(self.family[self.benign], families)]
        values = np.unique(score[b])[::-1]
        for v in values:
            if self.false_alerts(score, v, families) > budget:
                return float(np.nextafter(v, np.inf))
        return float(values[-1]) if len(values) else 0.0

    def curve(self, score: np.ndarray, budgets=BUDGETS) -> list[int]:
        peaks = self.peaks(score)
        return [int((peaks >= self.threshold(score, k)).sum()) for k in budgets]

    def transfer(self, score: np.ndarray, budget: int) -> tuple[int, int]:
        """Detections and false alerts when each family's threshold is chosen on the others."""
        families = sorted(set(self.family))
        detected = alerts = 0
        for f in families:
            others = [g for g in families if g != f]
            share = len(set(self.segment[self.benign[self.family[self.benign] != f]])) / max(self.hosts, 1)
            t = self.threshold(score, round(budget * share), others)
            detected += int((self.peaks(score, [f]) >= t).sum())
            alerts += self.false_alerts(score, t, [f])
        return detected, alerts


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative; ties count half."""
    if not len(positive) or not len(negative):
        return float("nan")
    both = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = len(positive)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def calibration_error(probability: np.ndarray, label: np.ndarray, weight: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins, weighted."""
    error = 0.0
    slot = np.minimum((probability * bins).astype(int), bins - 1)
    for k in range(bins):
        m = slot == k
        if weight[m].sum() > 0:
            gap = np.average(probability[m], weights=weight[m]) - np.average(label[m], weights=weight[m])
            error += abs(gap) * weight[m].sum()
    return float(error / weight.sum())
