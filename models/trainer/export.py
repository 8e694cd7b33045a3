"""Writes a `Detector` as ONNX, operator by operator.

By hand, because the exporters drop the reduction of scatters and the guards against empty sums.
Opset 18, IR 9. Embedding tables are stored as f16 (`round_tables` rounds the net to match first).
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from .contract import EDGE_TYPES, INPUTS, OUTPUTS
from .net import FLOOR, READ_OUT, Detector

ELEMENT = {"i64": TensorProto.INT64, "f32": TensorProto.FLOAT}


def round_tables(detector: Detector) -> None:
    """Rounds the embedding tables to f16 in place: what is measured is what ships."""
    with torch.no_grad():
        for table in (detector.gat.tokens, detector.gat.trees):
            table.copy_(table.half().float())


class Graph:
    """Nodes and initializers under construction; `name = g.op(...)` reads like the PyTorch line."""

    def __init__(self):
        self.nodes, self.initializers, self.count = [], [], 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def const(self, value) -> str:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        name = self.name("c")
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def floats(self, *values: float) -> str:
        return self.const(np.array(values, np.float32))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        name = self.name(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def rows(self, x: str) -> str:
        """Length of the first axis, as i64[1]."""
        return self.op("Shape", x, start=0, end=1)

    def linear(self, x: str, layer: torch.nn.Linear) -> str:
        y = self.op("MatMul", x, self.const(layer.weight.T.contiguous()))
        return y if layer.bias is None else self.op("Add", y, self.const(layer.bias))

    def norm(self, x: str, layer: torch.nn.LayerNorm) -> str:
        return self.op("LayerNormalization", x, self.const(layer.weight), self.const(layer.bias), epsilon=layer.eps)

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def soft_exp(self, x: str) -> str:
        """`exp(8 tanh(x / 8))`."""
        eight = self.floats(8.0)
        return self.op("Exp", self.op("Mul", self.op("Tanh", self.op("Div", x, eight)), eight))

    def columns(self, x: str, start: int, end: int) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(1))

    def scatter_add(self, values: str, index: str, rows: str, width: int) -> str:
        """`zeros(rows, width).index_add(0, index, values)`."""
        shape = self.op("Concat", rows, self.ints(width), axis=0)
        zeros = self.op("ConstantOfShape", shape)
        return self.op("ScatterND", zeros, self.op("Unsqueeze", index, self.ints(1)), values, reduction="add")

    def segment_max(self, values: str, index: str, rows: str) -> str:
        floor = helper.make_tensor("floor", TensorProto.FLOAT, [1], [FLOOR])
        start = self.op("ConstantOfShape", rows, value=floor)
        return self.op("ScatterND", start, self.op("Unsqueeze", index, self.ints(1)), values, reduction="max")

    def embedding_sum(self, table: torch.Tensor, ids: str, owner: str, rows: str) -> str:
        picked = self.op("Gather", self.const(table.detach().numpy().astype(np.float16)), ids)
        return self.scatter_add(self.op("Cast", picked, to=TensorProto.FLOAT), owner, rows, table.shape[1])


def emit(detector: Detector, metadata: dict[str, str]) -> onnx.ModelProto:
    """The detector as a checked ONNX model."""
    g, gat, shape = Graph(), detector.gat, detector.gat.shape
    d, h = shape.hidden, shape.heads
    nodes, graphs, edges = g.rows("node_type"), g.rows("graph_feat"), g.rows("edge_src")
    relations = len(EDGE_TYPES)

    x = g.op("Add", g.op("Gather", g.const(gat.type_embedding), "node_type"), g.linear("node_feat", gat.features))
    if shape.use_tokens:
        x = g.op("Add", x, g.linear(g.embedding_sum(gat.tokens, "tok_id", "tok_node", nodes), gat.token_project))
    x = g.op("Add", x, g.linear(g.embedding_sum(gat.trees, "tree_id", "tree_node", nodes), gat.tree_project))
    x = g.norm(x, gat.norm)
    src = g.op("Concat", "edge_src", "edge_dst", axis=0)
    dst = g.op("Concat", "edge_dst", "edge_src", axis=0)
    relation = g.op("Concat", "edge_type", g.op("Add", "edge_type", g.ints(relations)), axis=0)
    attention = []
    for layer in gat.layers:
        z = g.op("Mul", g.norm(x, layer.norm), g.op("Gather", g.const(layer.gate_in), "node_type"))
        p = g.linear(z, layer.project)
        value, from_src, to_dst = g.columns(p, 0, d), g.columns(p, d, d + h), g.columns(p, d + h, d + 2 * h)
        edge_term = g.op(
            "Concat", g.linear("edge_feat", layer.edge_forward), g.linear("edge_feat", layer.edge_reverse), axis=0
        )
        logit = g.op("Add", g.op("Gather", from_src, src), g.op("Gather", to_dst, dst))
        logit = g.op("Add", g.op("Add", logit, g.op("Gather", g.const(layer.relation), relation)), edge_term)
        weight = g.soft_exp(logit)
        heads = g.ints(-1, h, d // h)
        picked = g.op("Reshape", g.op("Gather", value, src), g.op("Concat", g.rows(src), g.ints(h, d // h), axis=0))
        message = g.op("Mul", picked, g.op("Unsqueeze", weight, g.ints(2)))
        flat = g.op("Reshape", message, g.op("Concat", g.rows(src), g.ints(d), axis=0))
        sums = g.scatter_add(g.op("Concat", flat, weight, axis=1), dst, nodes, d + h)
        total = g.op("Add", g.columns(sums, d, d + h), g.floats(1.0))
        mixed = g.op(
            "Div", g.op("Reshape", g.columns(sums, 0, d), heads), g.op("Unsqueeze", total, g.ints(2))
        )
        mixed = g.op("Reshape", mixed, g.ints(-1, d))
        gated = g.op("Mul", mixed, g.op("Gather", g.const(layer.gate_out), "node_type"))
        x = g.op("Add", x, g.silu(gated))
        share = g.op("Div", weight, g.op("Gather", total, dst))
        attention.append(g.op("MatMul", share, g.const(np.full((h, 1), 1 / (h * shape.layers), np.float32))))

    node = g.op("Squeeze", g.linear(g.silu(g.linear(x, gat.node_hidden)), gat.node_out), g.ints(1))
    head = detector.linear
    table = g.const(torch.stack([head.weight, head.square], 1))
    flags = g.scatter_add(g.op("Gather", table, "tree_id"), "tree_node", nodes, 2)
    length = g.op("Max", g.columns(flags, 1, 2), g.floats(float(head.floor)))
    length = g.op("Pow", length, g.floats(float(head.power)))
    linear = g.op("Add", g.op("Div", g.columns(flags, 0, 1), length), g.floats(float(head.bias)))
    linear = g.op("Squeeze", linear, g.ints(1))

    mask = g.op("Gather", g.floats(*READ_OUT), "node_type")
    fill = g.op("Mul", g.op("Sub", g.floats(1.0), mask), g.floats(FLOOR))

    def worst(v: str) -> str:
        return g.segment_max(g.op("Add", g.op("Mul", v, mask), fill), "node_graph", graphs)

    def mixed_score(by_gat: str, by_head: str) -> str:
        parts = [g.op("Mul", v, g.floats(float(w))) for v, w in zip((by_gat, by_head), detector.gain)]
        return g.op("Add", g.op("Add", *parts), g.floats(float(detector.offset)))

    curve = detector.calibration

    def calibrated(v: str) -> str:
        # Piece by piece: the order of a ReduceSum depends on the batch, and a score must not.
        total = g.floats(float(curve.offset))
        for knot, slope in zip(curve.knots.tolist(), curve.slopes.tolist()):
            rise = g.op("Relu", g.op("Sub", v, g.floats(knot)))
            total = g.op("Add", total, g.op("Mul", rise, g.floats(slope)))
        return total

    z = calibrated(mixed_score(worst(node), worst(linear)))
    logits = g.op("Mul", g.op("Unsqueeze", z, g.ints(1)), g.floats(-0.5, 0.5))
    score = g.op("Mul", g.op("Sigmoid", calibrated(mixed_score(node, linear))), mask)
    both = attention[0]
    for a in attention[1:]:
        both = g.op("Add", both, a)
    twice = g.op("Concat", edges, edges, axis=0)
    g.nodes.append(helper.make_node("Split", [both, twice], ["attn_forward", "attn_reverse"], "attn_split", axis=0))

    finals = {"logits": logits, "edge_attn": g.op("Concat", "attn_forward", "attn_reverse", axis=1), "node_score": score}
    return finish(g, finals, metadata)


def finish(g: Graph, finals: dict[str, str], metadata: dict[str, str]) -> onnx.ModelProto:
    """The graph as a checked model; `finals` says which values are the outputs."""
    for name, value in finals.items():
        g.nodes.append(helper.make_node("Identity", [value], [name], name))

    def info(name, element, columns, length):
        return helper.make_tensor_value_info(name, ELEMENT[element], [length] if columns is None else [length, columns])

    model = helper.make_model(
        helper.make_graph(g.nodes, "logster", [info(*i) for i in INPUTS], [info(*o) for o in OUTPUTS], g.initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
        producer_name="logster",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model
