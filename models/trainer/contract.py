"""The tensor contract between the graph builder (Rust), the trainer and the scorer.

One batch is the disjoint union of B graphs. Names, order, types and widths are those of
`model.onnx`; a package's manifest repeats them, and the scorer refuses a package that differs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

NODE_TYPES = ("process", "file", "script", "network", "syscall")
EDGE_TYPES = ("spawned", "wrote", "executed", "connected-to", "performed")
NODE_FEATURES = 16
EDGE_FEATURES = 8
GRAPH_FEATURES = 8
VOCABULARY = 32_768

#: (name, element type, columns or None for a vector, the length it shares)
INPUTS = (
    ("node_type", "i64", None, "N"),
    ("node_feat", "f32", NODE_FEATURES, "N"),
    ("tok_id", "i64", None, "T"),
    ("tok_node", "i64", None, "T"),
    ("tree_id", "i64", None, "U"),
    ("tree_node", "i64", None, "U"),
    ("edge_src", "i64", None, "E"),
    ("edge_dst", "i64", None, "E"),
    ("edge_type", "i64", None, "E"),
    ("edge_feat", "f32", EDGE_FEATURES, "E"),
    ("node_graph", "i64", None, "N"),
    ("graph_feat", "f32", GRAPH_FEATURES, "B"),
)
OUTPUTS = (("logits", "f32", 2, "B"), ("edge_attn", "f32", 2, "E"), ("node_score", "f32", None, "N"))


class Batch(NamedTuple):
    """The inputs, in the order of `INPUTS`."""

    node_type: torch.Tensor
    node_feat: torch.Tensor
    tok_id: torch.Tensor
    tok_node: torch.Tensor
    tree_id: torch.Tensor
    tree_node: torch.Tensor
    edge_src: torch.Tensor
    edge_dst: torch.Tensor
    edge_type: torch.Tensor
    edge_feat: torch.Tensor
    node_graph: torch.Tensor
    graph_feat: torch.Tensor

    def numpy(self) -> dict:
        """Feed for ONNX Runtime."""
        return {name: getattr(self, name).detach().cpu().numpy() for name, *_ in INPUTS}


def union(graphs: list[Batch]) -> Batch:
    """Joins graphs (or batches) into one disjoint union."""
    columns = [[] for _ in INPUTS]
    nodes = graph_count = 0
    for g in graphs:
        for column, (name, *_), value in zip(columns, INPUTS, g):
            if name in ("tok_node", "tree_node", "edge_src", "edge_dst"):
                value = value + nodes
            elif name == "node_graph":
                value = value + graph_count
            column.append(value)
        nodes += len(g.node_type)
        graph_count += len(g.graph_feat)
    return Batch(*(torch.cat(column) for column in columns))


def synthetic(seed: int, nodes: int, edges: int, tokens: int, trees: int) -> Batch:
    """One random graph of the given sizes: for tests and for a package's self-test vector."""
    r = torch.Generator().manual_seed(seed)

    def ids(high: int, n: int) -> torch.Tensor:
        return torch.randint(0, high, (n,), generator=r)

    return Batch(
        node_type=ids(len(NODE_TYPES), nodes),
        node_feat=torch.rand(nodes, NODE_FEATURES, generator=r) * 3,
        tok_id=ids(VOCABULARY, tokens),
        tok_node=ids(nodes, tokens),
        tree_id=ids(VOCABULARY, trees),
        tree_node=ids(nodes, trees),
        edge_src=ids(nodes, edges),
        edge_dst=ids(nodes, edges),
        edge_type=ids(len(EDGE_TYPES), edges),
        edge_feat=torch.rand(edges, EDGE_FEATURES, generator=r) * 3,
        node_graph=torch.zeros(nodes, dtype=torch.int64),
        graph_feat=torch.rand(1, GRAPH_FEATURES, generator=r) * 3,
    )
