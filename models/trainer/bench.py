"""Scoring beside PyTorch Geometric: the same network, the same windows, one core.

    python -m trainer.bench (windows|linux).arrow

Random weights of the specified architecture (`HeteroConv` of `GATConv`, 3 layers, 128 hidden, 4 heads, both directions of
every relation, edge features) are scored as PyTorch Geometric does it and as ONNX Runtime does it with the model that
`pyg.py` writes of them: the logits must agree to 1e-4. Beside both stands the package that ships. Windows are in
memory as each side takes them, in batches as the product makes them of a long queue; the best of a few interleaved rounds, as time of one thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
import pyarrow as pa
import torch
from torch import nn
from torch_geometric.nn import GATConv, HeteroConv

from . import pyg
from .contract import EDGE_FEATURES, EDGE_TYPES, GRAPH_FEATURES, NODE_FEATURES, NODE_TYPES, Batch, union
from .data import column
from .package import session

HIDDEN, HEADS, LAYERS = 128, 4, 3
#: Edges of one batch, unless a single graph has more: the product's `ScorerConfig.max_batch_edges`.
BATCH_EDGES = 8192
WINDOWS = 800
ROUNDS = 3
#: Largest difference of logits that counts as the same result.
SAME = 1e-4

Relation = tuple[str, str, str]


class Net(nn.Module):
    """The architecture that `pyg.py` imports."""

    def __init__(self, relations: list[Relation]):
        super().__init__()
        self.lin_in = nn.ModuleDict({t: nn.Linear(NODE_FEATURES, HIDDEN) for t in NODE_TYPES})
        per_head = HIDDEN // HEADS

        def layer() -> HeteroConv:
            conv = {r: GATConv((HIDDEN, HIDDEN), per_head, HEADS, add_self_loops=False, edge_dim=EDGE_FEATURES) for r in relations}
            return HeteroConv(conv, aggr="sum")

        self.convs = nn.ModuleList(layer() for _ in range(LAYERS))
        self.lin_out = nn.Linear(HIDDEN, 2)

    def forward(self, nodes, edges, features, graph, graphs: int):
        x = {t: self.lin_in[t](v).relu() for t, v in nodes.items()}
        for conv in self.convs:
            x = {t: v.relu() for t, v in conv(x, edges, edge_attr_dict=features).items()}
        every, of = torch.cat([x[t] for t in NODE_TYPES]), torch.cat([graph[t] for t in NODE_TYPES])
        size = torch.bincount(of, minlength=graphs).clamp(min=1)[:, None]
        return self.lin_out(torch.zeros(graphs, HIDDEN).index_add(0, of, every) / size)


def read(path: Path) -> list[Batch]:
    """Windows of an export, evenly spread over it, without labels."""
    widths = {"node_feat": NODE_FEATURES, "edge_feat": EDGE_FEATURES, "graph_feat": GRAPH_FEATURES}
    windows: list[Batch] = []
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            rows = reader.get_batch(i)
            names = [n for n in Batch._fields if n != "node_graph"]
            cols = {n: column(rows, n, np.float32 if n in widths else np.int64, widths.get(n, 0)) for n in names}
            for k in range(rows.num_rows):
                graph = torch.zeros(len(cols["node_type"][k]), dtype=torch.int64)
                windows.append(Batch(**{n: cols[n][k] for n in names}, node_graph=graph))
    return windows[:: -(-len(windows) // WINDOWS)]


def grouped(windows: list[Batch]) -> list[list[Batch]]:
    """Windows in order, as many together as fit."""
    groups, edges = [[]], 0
    for window in windows:
        edges += len(window.edge_src)
        if groups[-1] and edges > BATCH_EDGES:
            groups.append([])
            edges = len(window.edge_src)
        groups[-1].append(window)
    return groups


def ends(batch: Batch, relation: Relation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of a relation's edges, and all edges' sources and targets in its direction."""
    source, name, target = relation
    src, dst = (batch.edge_dst, batch.edge_src) if name.startswith("rev_") else (batch.edge_src, batch.edge_dst)
    mine = batch.edge_type == EDGE_TYPES.index(name.removeprefix("rev_"))
    mine &= batch.node_type[src] == NODE_TYPES.index(source)
    mine &= batch.node_type[dst] == NODE_TYPES.index(target)
    return mine.nonzero()[:, 0], src, dst


def relations_of(batches: list[Batch]) -> list[Relation]:
    """The relations that occur, both ways, and one to every node type, as the importer asks for."""
    seen = {("process", "spawned", "process"), ("process", "wrote", "file"), ("process", "executed", "script")}
    seen |= {("process", "connected-to", "network"), ("process", "performed", "syscall")}
    for b in batches:
        triples = torch.stack([b.node_type[b.edge_src], b.edge_type, b.node_type[b.edge_dst]], 1).unique(dim=0)
        seen |= {(NODE_TYPES[s], EDGE_TYPES[r], NODE_TYPES[t]) for s, r, t in triples.tolist()}
    return sorted(seen | {(t, f"rev_{r}", s) for s, r, t in seen})


def hetero(batch: Batch, relations: list[Relation]) -> tuple:
    """A batch as PyTorch Geometric takes it: by node type and relation."""
    position = torch.zeros(len(batch.node_type), dtype=torch.int64)
    nodes, graph, edges, features = {}, {}, {}, {}
    for i, kind in enumerate(NODE_TYPES):
        at = (batch.node_type == i).nonzero()[:, 0]
        position[at] = torch.arange(len(at))
        nodes[kind], graph[kind] = batch.node_feat[at], batch.node_graph[at]
    for relation in relations:
        at, src, dst = ends(batch, relation)
        edges[relation] = torch.stack([position[src[at]], position[dst[at]]])
        features[relation] = batch.edge_feat[at]
    return nodes, edges, features, graph, len(batch.graph_feat)


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    windows = read(Path(sys.argv[1]))
    batches = [union(group) for group in grouped(windows)]
    relations = relations_of(batches)
    net = Net(relations).eval()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        torch.save(net.state_dict(), checkpoint)
        imported = session(pyg.Emitter(pyg.load(checkpoint), "relu").emit(1.0, 0.0, {}).SerializeToString())
    platform = Path(sys.argv[1]).stem
    shipped = session((Path(__file__).parents[1] / "packages" / platform / "model.onnx").read_bytes())
    theirs, ours = [hetero(b, relations) for b in batches], [b.numpy() for b in batches]

    def geometric() -> np.ndarray:
        with torch.inference_mode():
            logits = torch.cat([net(*b) for b in theirs]).numpy()
        return logits[:, 1] - logits[:, 0]

    def runtime(of: InferenceSession) -> np.ndarray:
        logits = np.concatenate([of.run(["logits"], b)[0] for b in ours])
        return logits[:, 1] - logits[:, 0]

    runs = {"PyTorch Geometric": geometric, "the same, imported": lambda: runtime(imported), "the package that ships": lambda: runtime(shipped)}
    best, results = dict.fromkeys(runs, float("inf")), {}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.thread_time()
            results[name] = run()
            best[name] = min(best[name], time.thread_time() - start)
    nodes, edges = (sum(len(getattr(b, n)) for b in batches) / len(windows) for n in ("node_type", "edge_src"))
    print(f"{len(windows)} windows, {nodes:.0f} nodes and {edges:.0f} edges each on average, {len(relations)} relations")
    base = best["PyTorch Geometric"]
    for name, seconds in best.items():
        print(f"  {name:<24}{len(windows) / seconds:>8.0f} windows/s {base / seconds:>6.1f} times")
    apart = float(np.abs(results["PyTorch Geometric"] - results["the same, imported"]).max())
    print(f"  logits differ by at most {apart:.1e}")
    return 0 if apart <= SAME else 1


if __name__ == "__main__":
    sys.exit(main())
