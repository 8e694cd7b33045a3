"""The network: a fused heterogeneous graph attention net with a linear head beside it.

All node types live in one node space; type gates before and after aggregation, a bias per relation
and an edge term in the attention logit make it heterogeneous. Edges run both ways. Attention is
`exp(8 tanh(l/8))` over the incoming edges plus one empty edge of logit 0, so that a node may attend
to nothing, isolated nodes need no special case, and no segment-max is needed.

Two read-outs: the worst process (max of node logits), which supervision by labelled process trains,
and mean + attention pooling, which is trained along and takes no part in the score. The linear head scores
each process by the flags of its tree and takes the maximum too. `Detector` weighs the two and calibrates the sum.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .contract import EDGE_FEATURES, EDGE_TYPES, GRAPH_FEATURES, NODE_FEATURES, NODE_TYPES, VOCABULARY, Batch

#: What a graph without a process scores, and what nodes that are not read out are masked with.
FLOOR = -30.0
#: Node types that the maximum runs over: process and script.
READ_OUT = (1.0, 0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Shape:
    """Sizes of the net."""

    hidden: int = 128
    heads: int = 4
    layers: int = 3
    embedding: int = 32
    #: Sources of token embeddings: masked tokens may know the lab, flags do not.
    use_tokens: bool = True
    #: Nodes and edges have types. Without, the net is the baseline that shows what types are worth, and cannot be exported.
    typed: bool = True

    def as_dict(self) -> dict:
        return asdict(self)


def segment_max(value: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
    """Maximum per segment; `FLOOR` where it is empty."""
    return value.new_full((rows,), FLOOR).scatter_reduce(0, index, value, "amax", include_self=True)


def bag(table: torch.Tensor, ids: torch.Tensor, owner: torch.Tensor, rows: int) -> torch.Tensor:
    """Sum of table rows per owner."""
    return table.new_zeros(rows, table.shape[1]).index_add(0, owner, table[ids])


def read_out_mask(node_type: torch.Tensor) -> torch.Tensor:
    """1 where a node takes part in the maximum."""
    return torch.tensor(READ_OUT, device=node_type.device)[node_type]


class Layer(nn.Module):
    """One round of attention over both edge directions."""

    def __init__(self, shape: Shape):
        super().__init__()
        d, h = shape.hidden, shape.heads
        types, relations = len(NODE_TYPES), 2 * len(EDGE_TYPES)
        self.heads = h
        self.norm = nn.LayerNorm(d)
        self.gate_in = nn.Parameter(torch.ones(types, d))
        self.gate_out = nn.Parameter(torch.ones(types, d))
        # Columns: values (d), then attention terms of a source (h) and a target (h).
        self.project = nn.Linear(d, d + 2 * h)
        self.relation = nn.Parameter(torch.zeros(relations, h))
        self.edge_forward = nn.Linear(EDGE_FEATURES, h, bias=False)
        self.edge_reverse = nn.Linear(EDGE_FEATURES, h, bias=False)
        nn.init.normal_(self.edge_forward.weight, std=0.05)
        nn.init.normal_(self.edge_reverse.weight, std=0.05)

    def forward(self, x, node_type, src, dst, relation, edge_feat):
        d, h = x.shape[1], self.heads
        p = self.project(self.norm(x) * self.gate_in[node_type])
        value, from_src, to_dst = p[:, :d], p[:, d : d + h], p[:, d + h :]
        edge_term = torch.cat([self.edge_forward(edge_feat), self.edge_reverse(edge_feat)])
        logit = from_src[src] + to_dst[dst] + self.relation[relation] + edge_term
        weight = torch.exp(8 * torch.tanh(logit / 8))
        message = (value[src].view(-1, h, d // h) * weight[:, :, None]).reshape(-1, d)
        sums = x.new_zeros(x.shape[0], d + h).index_add(0, dst, torch.cat([message, weight], 1))
        total = sums[:, d:] + 1
        mixed = (sums[:, :d].view(-1, h, d // h) / total[:, :, None]).reshape(-1, d)
        return x + F.silu(mixed * self.gate_out[node_type]), (weight / total[dst]).mean(1)


class Gat(nn.Module):
    """Node logits, a pooled graph logit and edge attention."""

    def __init__(self, shape: Shape, dropout: float = 0.2):
        super().__init__()
        d, e = shape.hidden, shape.embedding
        self.shape = shape
        self.type_embedding = nn.Parameter(torch.randn(len(NODE_TYPES), d) * 0.1)
        self.features = nn.Linear(NODE_FEATURES, d, bias=False)
        self.tokens = nn.Parameter(torch.randn(VOCABULARY, e) * 0.05)
        self.trees = nn.Parameter(torch.randn(VOCABULARY, e) * 0.05)
        self.token_project = nn.Linear(e, d, bias=False)
        self.tree_project = nn.Linear(e, d, bias=False)
        self.norm = nn.LayerNorm(d)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.dropout = nn.Dropout(dropout)
        self.node_hidden = nn.Linear(d, 32)
        self.node_out = nn.Linear(32, 1)
        self.pool_gate = nn.Linear(d, 1)
        self.graph_hidden = nn.Linear(2 * d + GRAPH_FEATURES, 32)
        self.graph_out = nn.Linear(32, 1)
        nn.init.constant_(self.node_out.bias, -2.0)

    def forward(self, b: Batch):
        n, graphs = b.node_type.shape[0], b.graph_feat.shape[0]
        node_type = b.node_type if self.shape.typed else torch.zeros_like(b.node_type)
        x = self.type_embedding[node_type] + self.features(b.node_feat)
        if self.shape.use_tokens:
            x = x + self.token_project(bag(self.tokens, b.tok_id, b.tok_node, n))
        x = x + self.tree_project(bag(self.trees, b.tree_id, b.tree_node, n))
        x = self.norm(x)
        src, dst = torch.cat([b.edge_src, b.edge_dst]), torch.cat([b.edge_dst, b.edge_src])
        relation = torch.cat([b.edge_type, b.edge_type + len(EDGE_TYPES)])
        if not self.shape.typed:
            relation = torch.zeros_like(relation)
        attention = []
        for layer in self.layers:
            x, a = layer(x, node_type, src, dst, relation, b.edge_feat)
            attention.append(a)
        x = self.dropout(x)
        node = self.node_out(F.silu(self.node_hidden(x))).squeeze(1)
        gate = torch.exp(8 * torch.tanh(self.pool_gate(x) / 8))
        sums = x.new_zeros(graphs, 2 * x.shape[1] + 2)
        sums = sums.index_add(0, b.node_graph, torch.cat([x, x.new_ones(n, 1), gate * x, gate], 1))
        d = x.shape[1]
        mean = sums[:, :d] / sums[:, d : d + 1].clamp(min=1)
        pooled = sums[:, d + 1 : 2 * d + 1] / sums[:, 2 * d + 1 :].clamp(min=1e-6)
        graph = self.graph_out(F.silu(self.graph_hidden(torch.cat([mean, pooled, b.graph_feat], 1)))).squeeze(1)
        edges = b.edge_src.shape[0]
        both = torch.stack(attention).mean(0)
        return node, graph, torch.stack([both[:edges], both[edges:]], 1)


class LinearHead(nn.Module):
    """Scores a process by the flags of its tree: `sum w / max(sum q, floor)^power + bias`.

    `q` is the squared background weight of a flag; power 0 means no normalization.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.zeros(VOCABULARY))
        self.register_buffer("square", torch.zeros(VOCABULARY))
        self.register_buffer("floor", torch.ones(()))
        self.register_buffer("power", torch.zeros(()))
        self.register_buffer("bias", torch.tensor(-4.0))

    def forward(self, b: Batch) -> torch.Tensor:
        table = torch.stack([self.weight, self.square], 1)
        sums = bag(table, b.tree_id, b.tree_node, b.node_type.shape[0])
        return sums[:, 0] / torch.maximum(sums[:, 1], self.floor) ** self.power + self.bias


class Calibration(nn.Module):
    """A monotone piecewise linear curve from scores to logits: `offset + sum slope_k * max(z - knot_k, 0)`.

    The first knot lies below all scores; slopes add up from left to right and their running sum is positive.
    """

    KNOTS = 10

    def __init__(self):
        super().__init__()
        self.register_buffer("knots", torch.tensor([-100.0] + [100.0] * (self.KNOTS - 1)))
        self.register_buffer("slopes", torch.tensor([1.0] + [0.0] * (self.KNOTS - 1)))
        self.register_buffer("offset", torch.tensor(-100.0))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.offset + (torch.relu(z[:, None] - self.knots) * self.slopes).sum(1)


class Detector(nn.Module):
    """What ships: GAT and linear head, combined and calibrated.

    A graph's score is `gain[0] * worst process by the GAT + gain[1] * worst by the linear head + offset`.
    """

    def __init__(self, gat: Gat, linear: LinearHead):
        super().__init__()
        self.gat, self.linear = gat, linear
        self.register_buffer("gain", torch.tensor([0.5, 0.5]))
        self.register_buffer("offset", torch.zeros(()))
        self.calibration = Calibration()

    def forward(self, b: Batch):
        graphs = b.graph_feat.shape[0]
        node, _, attention = self.gat(b)
        linear = self.linear(b)
        mask = read_out_mask(b.node_type)

        def worst(v):
            return segment_max(v * mask + FLOOR * (1 - mask), b.node_graph, graphs)

        z = self.calibration(worst(node) * self.gain[0] + worst(linear) * self.gain[1] + self.offset)
        per_node = torch.sigmoid(self.calibration(node * self.gain[0] + linear * self.gain[1] + self.offset)) * mask
        return torch.stack([z * -0.5, z * 0.5], 1), attention, per_node
