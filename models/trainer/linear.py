"""The linear head: logistic regression on the flags of a process tree, the worst process counting.

- Windows: weights are non-negative and unnormalized, for flags that say something suspicious happened.
- Linux: weights are free, flags weigh by how rare they are in benign recordings, long lists are damped. Processes of a
  recording that look the same count once: a check that runs every minute says no more than the build that ran once.

Instances are processes of windows. Known malicious processes are positives; where a malicious window has
no labelled process, its best one under the first fit is taken for it in the second (multi-instance).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from .contract import VOCABULARY
from .data import AMBIGUOUS, MALICIOUS, NODE_UNKNOWN, Window
from .net import FLOOR, READ_OUT, LinearHead

#: Background processes of attack windows: probably benign, not surely.
BACKGROUND_WEIGHT = 0.3
#: A recording of one's own beside one of the corpus: with as much weight, what the corpus' hosts have in common and one's
#: own lack becomes a sign of attack, for most attacks are the corpus'.
OWN_WEIGHT = 0.3


class Instances:
    """Every process and script of every window as a sparse row of flags."""

    def __init__(self, windows: list[Window]):
        indices, self.window, self.label, key = [], [], [], []
        self.windows = len(windows)
        pointers = [0]
        for w, window in enumerate(windows):
            g = window.graph
            types = g.node_type.numpy()
            flags = np.unique(g.tree_node.numpy() * VOCABULARY + g.tree_id.numpy())
            owner, flags = flags // VOCABULARY, flags % VOCABULARY
            cuts = np.searchsorted(owner, np.arange(len(types) + 1))
            for n in np.flatnonzero(np.array(READ_OUT)[types] > 0):
                indices.append(flags[cuts[n] : cuts[n + 1]])
                pointers.append(pointers[-1] + cuts[n + 1] - cuts[n])
                self.window.append(w)
                # A script block has no GUID: unknown in attack windows.
                doubtful = window.label == MALICIOUS and (types[n] != 0 or window.snippet)
                self.label.append(NODE_UNKNOWN if doubtful and window.node_label[n] != 1 else window.node_label[n])
                # A node without an identity is a process of its own in each window.
                key.append((window.recording, window.view, window.node_id[n] or (w, n)))
        self.window, self.label = np.array(self.window, int), np.array(self.label, int)
        data = np.concatenate(indices) if indices else np.zeros(0, int)
        self.x = sp.csr_matrix(
            (np.ones(len(data), np.float32), data, np.array(pointers)), shape=(len(self.window), VOCABULARY)
        )
        numbers: dict = {}
        self.key = np.array([numbers.setdefault(k, len(numbers)) for k in key])
        recordings: dict = {}
        per_window = np.array([recordings.setdefault(w.recording, len(recordings)) for w in windows])
        self.recording = per_window[self.window]
        self.window_label = np.array([w.label for w in windows])[self.window]
        self.trainable = np.array([w.label != AMBIGUOUS for w in windows])[self.window]
        self.own = np.array([w.own for w in windows], bool)[self.window]
        # A malicious recording none of whose processes is labelled: its zeros are unknown too.
        named = np.unique(self.recording[self.label == 1])
        unnamed = (self.window_label == MALICIOUS) & (self.label == 0) & ~np.isin(self.recording, named)
        self.label[unnamed] = NODE_UNKNOWN

    @cached_property
    def distinct(self) -> np.ndarray:
        """Which are the first of their look in their recording, among those with a label that may train."""
        index = np.flatnonzero(self.trainable & (self.label >= 0))
        # Looks by a sum of random numbers modulo 2^64, one a flag: equal rows have equal sums, others as good as never.
        numbers = np.random.default_rng(0).integers(0, 2**64, VOCABULARY, np.uint64)
        sums = np.append(np.uint64(0), np.cumsum(numbers[self.x.indices]))[self.x.indptr]
        looks = np.stack([self.recording[index].astype(np.uint64), self.label[index].astype(np.uint64), np.diff(sums)[index]])
        _, first = np.unique(looks, axis=1, return_index=True)
        out = np.zeros(len(self.label), bool)
        out[index[first]] = True
        return out

    @cached_property
    def by_window(self) -> sp.csr_matrix:
        """The flags of each window as a whole."""
        rows = np.arange(len(self.window))
        member = sp.csr_matrix((np.ones(len(rows)), (self.window, rows)), (self.windows, len(rows)))
        return ((member @ self.x) > 0).astype(np.float32).tocsr()

    def maximum(self, score: np.ndarray, windows: int) -> np.ndarray:
        """Highest instance of each window."""
        out = np.full(windows, FLOOR)
        np.maximum.at(out, self.window, score)
        return out


@dataclass
class Fit:
    """Weights over the vocabulary and what normalizes them."""

    weight: np.ndarray
    square: np.ndarray
    floor: float
    power: float
    bias: float

    def score(self, x: sp.csr_matrix) -> np.ndarray:
        return (x @ self.weight) / np.maximum(x @ self.square, self.floor) ** self.power + self.bias

    def store(self, head: LinearHead) -> None:
        import torch

        head.weight.copy_(torch.from_numpy(self.weight.astype(np.float32)))
        head.square.copy_(torch.from_numpy(self.square.astype(np.float32)))
        head.floor.fill_(self.floor)
        head.power.fill_(self.power)
        head.bias.fill_(self.bias)


def logistic(x: sp.csr_matrix, y: np.ndarray, w: np.ndarray, ridge: float, non_negative: bool) -> tuple[np.ndarray, float]:
    """Weighted ridge logistic regression by L-BFGS-B; returns weights and bias."""
    n = x.shape[1]
    sign = 2.0 * y - 1
    xt = x.T.tocsr()

    def loss(p):
        margin = sign * (x @ p[:n] + p[n])
        slope = -sign * w / (1 + np.exp(np.clip(margin, -50, 50)))
        value = (w * np.logaddexp(0, -margin)).sum() + 0.5 * ridge * (p[:n] @ p[:n])
        return value, np.append(xt @ slope + ridge * p[:n], slope.sum())

    bounds = [(0 if non_negative else -8, 8)] * n + [(-15, 5)]
    start = np.append(np.zeros(n), -4.0)
    return (p := minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100}).x)[:n], p[n]


def instance_weights(data: Instances, use: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A process counts little more for lying in six windows; recordings count alike; classes are balanced."""
    w = np.zeros(len(label))
    index = np.flatnonzero(use)
    _, inverse, counts = np.unique(data.key[index], return_inverse=True, return_counts=True)
    w[index] = counts[inverse] ** -0.7
    w[use & (label == 0) & (data.window_label == MALICIOUS)] *= BACKGROUND_WEIGHT
    positive, negative = use & (label == 1), use & (label == 0)
    total = np.bincount(data.recording[positive], w[positive], minlength=data.recording.max() + 1)
    w[positive] /= np.maximum(total[data.recording[positive]], 1e-9) ** 0.5
    w[positive] *= 2000 / max(w[positive].sum(), 1e-9)
    w[negative] *= 4000 / max(w[negative].sum(), 1e-9)
    return w


def fit_windows(data: Instances, train: np.ndarray, ridge: float = 5.0, rounds: int = 2) -> Fit:
    """Non-negative fit on the instances `train` selects, with one multi-instance round."""
    seen = np.flatnonzero(np.asarray(data.x[train].sum(0)).ravel())
    x = data.x[:, seen]
    label = data.label.copy()
    for _ in range(rounds):
        use = train & data.trainable & (label >= 0)
        weight, bias = logistic(x[use], label[use], instance_weights(data, use, label)[use], ridge, True)
        score = x @ weight + bias
        label = data.label.copy()
        for w in np.unique(data.window[train & (data.label == NODE_UNKNOWN) & (data.window_label == MALICIOUS)]):
            members = np.flatnonzero(data.window == w)
            if not (label[members] == 1).any():
                unknown = members[label[members] == NODE_UNKNOWN]
                label[unknown[np.argmax(score[unknown])]] = 1
    full = np.zeros(VOCABULARY)
    full[seen] = weight
    return Fit(full, np.zeros(VOCABULARY), 1.0, 0.0, float(bias))


def weights_linux(y: np.ndarray, recording: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Recordings count alike within each class, those of one's own less."""
    w = np.zeros(len(y))
    for value, total in ((1, 2000.0), (0, 6000.0)):
        members = y == value
        counts = np.bincount(recording[members], minlength=recording.max() + 1)
        w[members] = np.where(own[members], OWN_WEIGHT, 1.0) / counts[recording[members]]
        w[members] *= total / max(w[members].sum(), 1e-9)
    return w


def training_set(platform: str, data: Instances, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The instances with a label among those that `train` selects, and their weights: as the heads below use them."""
    if platform == "windows":
        use = train & data.trainable & (data.label >= 0)
        return use, instance_weights(data, use, data.label)[use]
    use = train & data.distinct
    return use, weights_linux(data.label[use], data.recording[use], data.own[use])


def fit_linux(data: Instances, train: np.ndarray, ridge: float = 0.3, least: int = 2) -> Fit:
    """Free fit; flags weigh by rarity in benign recordings and must occur in `least` recordings."""
    use, w = training_set("linux", data, train)
    x, y, recording = data.x[use], data.label[use], data.recording[use]
    recordings, one = np.unique(recording, return_index=True)
    by_recording = sp.csr_matrix((np.ones(len(y)), (np.searchsorted(recordings, recording), np.arange(len(y)))))
    support = np.asarray(((by_recording @ x) > 0).sum(0)).ravel()
    clean = by_recording @ sp.diags((y == 0).astype(float))
    totals = np.asarray(clean.sum(1)).ravel()
    share = np.where(data.own[use][one], OWN_WEIGHT, 1.0) * (totals > 0)
    frequency = np.asarray((sp.diags(share / np.maximum(totals, 1)) @ clean @ x).sum(0)).ravel() / max(share.sum(), 1e-9)
    rarity = np.minimum(-np.log(frequency + 2e-4), 8) / 4
    rarity[support < least] = 0
    kept = np.flatnonzero(rarity > 0)
    square = rarity**2
    power, floor = 0.25, 9.0
    length = np.maximum(x @ square, floor) ** power
    scaled = (sp.diags(1 / length) @ x[:, kept] @ sp.diags(rarity[kept])).tocsr()
    weight, bias = logistic(scaled, y, w, ridge, False)
    full = np.zeros(VOCABULARY)
    full[kept] = weight * rarity[kept]
    return Fit(full, square, floor, power, float(bias))


def fit(platform: str, data: Instances, train: np.ndarray) -> Fit:
    """The platform's head on the instances that `train` selects."""
    return fit_windows(data, train) if platform == "windows" else fit_linux(data, train)
