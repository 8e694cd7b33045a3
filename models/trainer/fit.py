"""Trains the GAT on labelled windows. Deterministic for a seed, a thread count and a machine.

- Loss: cross-entropy of the worst process against the window's label, of the pooled read-out
  likewise at a lower weight, and of each labelled process.
- Against overfitting to labs: ids that one source alone shows say nothing, flags and edges are dropped at random,
  features jittered, and attack graphs are spliced into benign windows of other recordings.
- Overlapping windows say nearly the same: each epoch takes a random share of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from .contract import VOCABULARY, Batch, union
from .data import AMBIGUOUS, BENIGN, MALICIOUS, Window
from .net import FLOOR, Gat, Shape, read_out_mask, segment_max

#: Families of recordings that must show an id before a net may use it.
LEAST_FAMILIES = 2
#: A GPU where there is one. Its sums are not reproducible bit for bit; a CPU with one thread is.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run beside data and seed."""

    shape: Shape = Shape()
    epochs: int = 12
    share: float = 0.5
    #: Windows of snippet recordings an epoch: many alike, and without background.
    snippets: int = 100
    batch_edges: int = 12_000
    rate: float = 3e-3
    decay: float = 1e-2
    drop_ids: float = 0.15
    drop_edges: float = 0.1
    jitter: float = 0.05
    splice: float = 0.4
    node_loss: float = 0.5
    pooled_loss: float = 0.3
    #: Weights are averaged over the steps of the last part of training: steadier than the last step's.
    averaged: float = 0.3


def window_weights(windows: list[Window]) -> np.ndarray:
    """Recordings count by the root of their windows, classes alike; the mean is 1."""
    counts = Counter((w.recording, w.label) for w in windows)
    weight = np.array([counts[w.recording, w.label] ** -0.5 for w in windows])
    label = np.array([w.label for w in windows])
    for value in (BENIGN, MALICIOUS):
        if (label == value).any():
            weight[label == value] /= weight[label == value].sum()
    return weight / weight.mean()


def with_ids(b: Batch, tok: torch.Tensor, tree: torch.Tensor) -> Batch:
    """A copy with the ids of these masks alone."""
    return b._replace(tok_id=b.tok_id[tok], tok_node=b.tok_node[tok], tree_id=b.tree_id[tree], tree_node=b.tree_node[tree])


def thinned(b: Batch, recipe: Recipe, r: torch.Generator) -> Batch:
    """A copy with ids and edges dropped and features jittered."""

    def keep(n: int, drop: float) -> torch.Tensor:
        return torch.rand(n, generator=r) >= drop

    tok, tree, edge = keep(len(b.tok_id), recipe.drop_ids), keep(len(b.tree_id), recipe.drop_ids), keep(len(b.edge_src), recipe.drop_edges)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + recipe.jitter * torch.randn(x.shape, generator=r))

    return with_ids(b, tok, tree)._replace(
        node_feat=noisy(b.node_feat),
        edge_src=b.edge_src[edge],
        edge_dst=b.edge_dst[edge],
        edge_type=b.edge_type[edge],
        edge_feat=noisy(b.edge_feat[edge]),
        graph_feat=noisy(b.graph_feat),
    )


def spliced(attack: Window, background: Window) -> tuple[Batch, np.ndarray]:
    """A window's graph beside another host's benign one, as one window."""
    both = union([attack.graph, background.graph])
    features = torch.maximum(attack.graph.graph_feat, background.graph.graph_feat)
    graph = both._replace(node_graph=torch.zeros_like(both.node_graph), graph_feat=features)
    return graph, np.concatenate([attack.node_label, background.node_label])


def on_device(b: Batch) -> Batch:
    return Batch(*(column.to(DEVICE) for column in b))


def batches(windows: list[Window], order, limit: int):
    """Index lists of about `limit` edges each, in order."""
    batch, edges = [], 0
    for i in order:
        batch.append(i)
        edges += len(windows[i].graph.edge_src) + len(windows[i].graph.node_type) // 2
        if edges >= limit:
            yield batch
            batch, edges = [], 0
    if batch:
        yield batch


def train(windows: list[Window], recipe: Recipe, seed: int, losses: list[float] | None = None) -> Gat:
    """Fits a GAT on the windows with a label; the mean loss of each epoch is added to `losses`."""
    windows = [w for w in windows if w.label != AMBIGUOUS]
    usable = usable_ids(windows)
    windows = [replace(w, graph=restricted(w.graph, usable)) for w in windows]
    torch.manual_seed(seed)
    r = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(window_weights(windows)).float()
    benign = [i for i, w in enumerate(windows) if w.label == BENIGN and not w.snippet]
    snippets = np.array([i for i, w in enumerate(windows) if w.snippet], int)
    whole = np.array([i for i, w in enumerate(windows) if not w.snippet], int)
    take = max(1, round(recipe.share * len(whole)))

    def plan() -> list[list[int]]:
        chosen = np.concatenate([rng.permutation(whole)[:take], rng.permutation(snippets)[: recipe.snippets]])
        return list(batches(windows, rng.permutation(chosen), recipe.batch_edges))

    plans = [plan() for _ in range(recipe.epochs)]
    gat = Gat(recipe.shape).to(DEVICE)
    optimizer = torch.optim.AdamW(gat.parameters(), recipe.rate, weight_decay=recipe.decay)
    steps_left = sum(map(len, plans))
    average, average_from = None, round(recipe.averaged * steps_left)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps_left + 1)
    for steps in plans:
        gat.train()
        total = 0.0
        for step in steps:
            graphs, labels = [], []
            for i in step:
                w = windows[i]
                graph, label = w.graph, w.node_label
                if w.label == MALICIOUS and benign and (w.snippet or rng.random() < recipe.splice):
                    k = benign[rng.integers(len(benign))]
                    if windows[k].recording != w.recording:
                        graph, label = spliced(w, windows[k])
                graphs.append(thinned(graph, recipe, r))
                labels.append(label)
            b = on_device(union(graphs))
            node, pooled, _ = gat(b)
            mask = read_out_mask(b.node_type)
            worst = segment_max(node * mask + FLOOR * (1 - mask), b.node_graph, len(graphs))
            y = torch.tensor([float(windows[i].label) for i in step], device=DEVICE)
            known = torch.from_numpy(np.concatenate(labels)).float().to(DEVICE)
            use = (known >= 0) & (mask > 0)
            w = weight[step].to(DEVICE)
            loss = (F.binary_cross_entropy_with_logits(worst, y, reduction="none") * w).mean()
            loss = loss + recipe.pooled_loss * (F.binary_cross_entropy_with_logits(pooled, y, reduction="none") * w).mean()
            if use.any():
                is_attack = known[use]
                background = torch.where(y[b.node_graph] == 1, 0.1, 0.3)[use]
                share = is_attack + (1 - is_attack) * background
                each = F.binary_cross_entropy_with_logits(node[use], is_attack, reduction="none")
                loss = loss + recipe.node_loss * (each * share).sum() / (float(is_attack.sum()) + 5)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gat.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            steps_left -= 1
            if steps_left < average_from:
                average = average or AveragedModel(gat)
                average.update_parameters(gat)
            total += float(loss.detach()) * len(step)
        if losses is not None:
            losses.append(total / sum(map(len, steps)))
    gat = (average.module if average else gat).cpu()
    forget_unusable(gat, usable)
    return gat.eval()


def usable_ids(windows: list[Window]) -> dict[str, torch.Tensor]:
    """Which ids a net may use, as own tokens (`tok`) and as signs over a tree (`tree`).

    Windows of `LEAST_FAMILIES` families must show an id: what one source alone shows may be its mark. A benign one must be
    among those that show an own token: a program that only attacked hosts were recorded to run, be it a browser, would be
    suspect for what the recordings lack. A sign of suspicion needs no such company.
    """
    least = min(LEAST_FAMILIES, len({w.family for w in windows}))
    out = {}
    for kind in ("tok", "tree"):
        shown: dict[str, np.ndarray] = {}
        ordinary = np.zeros(VOCABULARY, bool)
        for w in windows:
            ids = getattr(w.graph, f"{kind}_id").numpy()
            shown.setdefault(w.family, np.zeros(VOCABULARY, bool))[ids] = True
            if w.label == BENIGN:
                ordinary[ids] = True
        usable = sum(shown.values(), np.zeros(VOCABULARY, int)) >= least
        out[kind] = torch.from_numpy(usable & ordinary if kind == "tok" else usable)
    return out


def restricted(graph: Batch, usable: dict[str, torch.Tensor]) -> Batch:
    """The graph with usable ids alone."""
    return with_ids(graph, usable["tok"][graph.tok_id], usable["tree"][graph.tree_id])


def forget_unusable(gat: Gat, usable: dict[str, torch.Tensor]) -> None:
    """The embeddings of other ids are set to zero: they say nothing."""
    with torch.no_grad():
        gat.tokens[~usable["tok"]] = 0
        gat.trees[~usable["tree"]] = 0


def score(gat: Gat, windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Worst process and pooled logit of each window."""
    worst, pooled = np.full(len(windows), FLOOR), np.zeros(len(windows))
    gat.eval()
    with torch.no_grad():
        for step in batches(windows, range(len(windows)), 20_000):
            b = union([windows[i].graph for i in step])
            node, graph, _ = gat(b)
            mask = read_out_mask(b.node_type)
            worst[step] = segment_max(node * mask + FLOOR * (1 - mask), b.node_graph, len(step)).numpy()
            pooled[step] = graph.numpy()
    return worst, pooled
