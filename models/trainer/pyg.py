"""Imports a PyTorch Geometric checkpoint of the specified architecture as a model package.

    python -m trainer.pyg --checkpoint model.pt --platform windows --package DIR --name NAME --version V

The architecture: a linear layer per node type, layers of `HeteroConv` (aggregation `sum`) over `GATConv` or `GATv2Conv`
with heads concatenated and an activation after each, the mean over all nodes of a graph, a linear layer to two classes
(benign, attack). 3 layers, 128 hidden and 4 heads are what is specified; other sizes are read off the checkpoint.
The model must have been trained on this product's windows (`logster export-windows`): node types and relations are those
of `contract.py`, a relation's reverse is called `rev_<relation>`, a node's input is its row of `node_feat`, an edge's, if
the layers take any, its row of `edge_feat`. Tokens and `graph_feat` are not used. Names in the state dict:

    lin_in.<type>.weight|bias
    convs.<layer>.convs.<<source>___<relation>___<target>>.<parameters of GATConv or GATv2Conv>
    lin_out.weight|bias

A state dict does not say which activation follows a layer: `--activation` does. A checkpoint is untrusted: it is read by
PyTorch's restricted unpickler, which builds tensors and runs nothing, and anything else in it is refused.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper

from .contract import EDGE_FEATURES, EDGE_TYPES, NODE_FEATURES, NODE_TYPES
from .data import digest
from .export import Graph, finish
from .net import READ_OUT
from .package import FEATURE_VERSION, store_package

CONV = re.compile(r"convs\.(\d+)\.convs\.<(\w+)___([\w-]+)___(\w+)>\.(.+)")
#: Slope of the leaky unit in both kinds of attention.
SLOPE = 0.2


class Refused(Exception):
    """The checkpoint is not of the architecture; the message says in what."""


@dataclass
class Relation:
    """One relation's parameters in one layer."""

    source: str
    name: str
    target: str
    weights: dict[str, torch.Tensor]

    @property
    def reverse(self) -> bool:
        return self.name.startswith("rev_")

    @property
    def edge_type(self) -> int:
        return EDGE_TYPES.index(self.name.removeprefix("rev_"))

    @property
    def key(self) -> tuple[str, str, str]:
        return self.source, self.name, self.target

    def take(self, *names: str) -> torch.Tensor | None:
        """The first of these parameters that is there."""
        return next((self.weights[n] for n in names if n in self.weights), None)


@dataclass
class Checkpoint:
    """What a state dict holds, checked."""

    inputs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    layers: list[list[Relation]]
    output: tuple[torch.Tensor, torch.Tensor]
    heads: int
    hidden: int


def load(path: Path) -> Checkpoint:
    """Reads a state dict (or `{"state_dict": ...}`) without running anything in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise Refused(f"{path} cannot be read as plain tensors: {e}") from e
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise Refused(f"{path} holds no state dict: save model.state_dict()")
    return understand({str(k): v.float() for k, v in state.items()})


def understand(state: dict[str, torch.Tensor]) -> Checkpoint:
    """Takes a state dict apart; every parameter must have its place."""

    def linear(name: str, columns: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        weight = state.pop(f"{name}.weight", None)
        if weight is None:
            raise Refused(f"{name}.weight is missing")
        if columns is not None and weight.shape[1] != columns:
            raise Refused(f"{name} takes {weight.shape[1]} features, the product has {columns}: trained on other windows?")
        return weight, state.pop(f"{name}.bias", torch.zeros(weight.shape[0]))

    state = dict(state)
    inputs = {kind: linear(f"lin_in.{kind}", NODE_FEATURES) for kind in NODE_TYPES}
    output = linear("lin_out")
    hidden = output[0].shape[1]
    if output[0].shape[0] != 2:
        raise Refused(f"lin_out has {output[0].shape[0]} classes, not 2")
    found: dict[int, dict[tuple[str, str, str], Relation]] = {}
    for name in list(state):
        if match := CONV.fullmatch(name):
            layer, source, relation, target, parameter = match.groups()
            if source not in NODE_TYPES or target not in NODE_TYPES or relation.removeprefix("rev_") not in EDGE_TYPES:
                raise Refused(f"no such relation here: {source} {relation} {target}")
            of = found.setdefault(int(layer), {}).setdefault((source, relation, target), Relation(source, relation, target, {}))
            of.weights[parameter] = state.pop(name)
    if state:
        raise Refused(f"no place for {', '.join(sorted(state)[:5])}")
    if sorted(found) != list(range(len(found))) or not found:
        raise Refused(f"layers are {sorted(found)}")
    layers = [[found[k][key] for key in sorted(found[k])] for k in sorted(found)]
    heads = set()
    for k, layer in enumerate(layers):
        untouched = set(NODE_TYPES) - {r.target for r in layer}
        if untouched:
            raise Refused(f"layer {k} has no relation to {', '.join(sorted(untouched))}: such nodes would be lost")
        for r in layer:
            attention = r.take("att", "att_src")
            if attention is None or attention.shape[1] * attention.shape[2] != hidden:
                raise Refused(f"layer {k}, {r.key}: heads concatenated must give {hidden}")
            heads.add(attention.shape[1])
            if r.take("lin.weight", "lin_src.weight", "lin_l.weight") is None:
                raise Refused(f"layer {k}, {r.key}: neither GATConv nor GATv2Conv")
            known = {"att", "att_src", "att_dst", "att_edge", "bias"} | {
                f"{n}.{p}" for n in ("lin", "lin_src", "lin_dst", "lin_edge", "lin_l", "lin_r") for p in ("weight", "bias")
            }
            if extra := set(r.weights) - known:
                raise Refused(f"layer {k}, {r.key}: no place for {', '.join(sorted(extra))}")
            edge = r.take("lin_edge.weight")
            if edge is not None and edge.shape[1] != EDGE_FEATURES:
                raise Refused(f"layer {k}, {r.key}: takes {edge.shape[1]} edge features, the product has {EDGE_FEATURES}")
    if len(heads) != 1:
        raise Refused(f"layers have {sorted(heads)} heads")
    return Checkpoint(inputs, layers, output, heads.pop(), hidden)


class Emitter(Graph):
    """Writes the checkpoint's graph in the tensor contract."""

    def __init__(self, c: Checkpoint, activation: str):
        super().__init__()
        self.c, self.activation = c, activation
        self.nodes_count, self.graphs, self.edges = self.rows("node_type"), self.rows("graph_feat"), self.rows("edge_src")
        self.ends: dict[tuple[str, str, str], tuple[str, str, str]] = {}

    def dense(self, x: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> str:
        y = self.op("MatMul", x, self.const(weight.T.contiguous()))
        return y if bias is None else self.op("Add", y, self.const(bias))

    def edges_of(self, r: Relation) -> tuple[str, str, str]:
        """Numbers of the relation's edges, and the nodes that messages come from and go to."""
        if r.key not in self.ends:
            src, dst = ("edge_dst", "edge_src") if r.reverse else ("edge_src", "edge_dst")

            def of_type(end: str, kind: str) -> str:
                return self.op("Equal", self.op("Gather", "node_type", end), self.ints(NODE_TYPES.index(kind)))

            mine = self.op("Equal", "edge_type", self.ints(r.edge_type))
            mine = self.op("And", mine, self.op("And", of_type(src, r.source), of_type(dst, r.target)))
            at = self.op("Squeeze", self.op("NonZero", mine), self.ints(0))
            self.ends[r.key] = at, self.op("Gather", src, at), self.op("Gather", dst, at)
        return self.ends[r.key]

    def by_head(self, x: str) -> str:
        return self.op("Reshape", x, self.ints(0, self.c.heads, self.c.hidden // self.c.heads))

    def weighed(self, x: str, attention: torch.Tensor) -> str:
        """Sum over a head's columns of `x * attention`."""
        return self.op("ReduceSum", self.op("Mul", x, self.const(attention)), self.ints(2), keepdims=0)

    def attend(self, x: str, r: Relation) -> tuple[str, str, str]:
        """Messages of a relation summed per node, its attention per edge (mean of heads), and the edges' numbers."""
        at, src, dst = self.edges_of(r)
        from_x, to_x, edge = self.op("Gather", x, src), self.op("Gather", x, dst), None
        if (weight := r.take("lin_edge.weight")) is not None:
            edge = self.by_head(self.dense(self.op("Gather", "edge_feat", at), weight, r.take("lin_edge.bias")))
        left = r.take("lin_l.weight", "lin_src.weight", "lin.weight")
        value = self.by_head(self.dense(from_x, left, r.take("lin_l.bias", "lin_src.bias", "lin.bias")))
        right = r.take("lin_r.weight", "lin_dst.weight", "lin_l.weight", "lin.weight")
        target = self.by_head(self.dense(to_x, right, r.take("lin_r.bias", "lin_dst.bias", "lin.bias")))
        if "att" in r.weights:
            mixed = self.op("Add", value, target)
            mixed = mixed if edge is None else self.op("Add", mixed, edge)
            logit = self.weighed(self.op("LeakyRelu", mixed, alpha=SLOPE), r.weights["att"])
        else:
            logit = self.op("Add", self.weighed(value, r.weights["att_src"]), self.weighed(target, r.weights["att_dst"]))
            if edge is not None:
                logit = self.op("Add", logit, self.weighed(edge, r.weights["att_edge"]))
            logit = self.op("LeakyRelu", logit, alpha=SLOPE)
        # Softmax over what comes in by this relation.
        shape = self.op("Concat", self.nodes_count, self.ints(self.c.heads), axis=0)
        floor = self.op("ConstantOfShape", shape, value=helper.make_tensor("floor", 1, [1], [-1e30]))
        index = self.op("Unsqueeze", dst, self.ints(1))
        peak = self.op("Gather", self.op("ScatterND", floor, index, logit, reduction="max"), dst)
        weight = self.op("Exp", self.op("Sub", logit, peak))
        total = self.op("Gather", self.scatter_add(weight, dst, self.nodes_count, self.c.heads), dst)
        share = self.op("Div", weight, total)
        message = self.op("Mul", value, self.op("Unsqueeze", share, self.ints(2)))
        flat = self.op("Reshape", message, self.ints(0, self.c.hidden))
        return self.scatter_add(flat, dst, self.nodes_count, self.c.hidden), self.op("ReduceMean", share, self.ints(1), keepdims=0), at

    def emit(self, temperature: float, bias: float, metadata: dict[str, str]) -> onnx.ModelProto:
        c, x = self.c, None
        for kind, (weight, offset) in c.inputs.items():
            mine = self.op("Equal", "node_type", self.ints(NODE_TYPES.index(kind)))
            mine = self.op("Unsqueeze", self.op("Cast", mine, to=1), self.ints(1))
            part = self.op("Mul", self.dense("node_feat", weight, offset), mine)
            x = part if x is None else self.op("Add", x, part)
        unit = {"relu": "Relu", "elu": "Elu"}[self.activation]
        seen = {False: [], True: []}
        x = self.op(unit, x)
        for layer in c.layers:
            offsets = torch.zeros(len(NODE_TYPES), c.hidden)
            for r in layer:
                offsets[NODE_TYPES.index(r.target)] += r.weights.get("bias", torch.zeros(c.hidden))
            y = self.op("Gather", self.const(offsets), "node_type")
            for r in layer:
                part, attention, at = self.attend(x, r)
                y = self.op("Add", y, part)
                seen[r.reverse].append((attention, at))
            x = self.op(unit, y)
        ones = self.op("ConstantOfShape", self.op("Concat", self.nodes_count, self.ints(1), axis=0), value=helper.make_tensor("one", 1, [1], [1.0]))
        sums = self.scatter_add(self.op("Concat", x, ones, axis=1), "node_graph", self.graphs, c.hidden + 1)
        size = self.op("Max", self.columns(sums, c.hidden, c.hidden + 1), self.floats(1.0))
        mean = self.op("Div", self.columns(sums, 0, c.hidden), size)
        # Both classes moved alike changes nothing: the difference is what is calibrated.
        weight, offset = c.output
        contrast = ((weight[1] - weight[0])[None] / temperature, (offset[1] - offset[0])[None] / temperature + bias)
        logits = self.op("Mul", self.dense(mean, *contrast), self.floats(-0.5, 0.5))
        node = self.op("Sigmoid", self.op("Squeeze", self.dense(x, *contrast), self.ints(1)))
        score = self.op("Mul", node, self.op("Gather", self.floats(*READ_OUT), "node_type"))
        directions = []
        for reverse in (False, True):
            total = self.op("ConstantOfShape", self.edges)
            for attention, at in seen[reverse]:
                total = self.op("ScatterND", total, self.op("Unsqueeze", at, self.ints(1)), attention, reduction="add")
            directions.append(self.op("Unsqueeze", self.op("Div", total, self.floats(float(len(c.layers)))), self.ints(1)))
        attention = self.op("Concat", *directions, axis=1)
        return finish(self, {"logits": logits, "edge_attn": attention, "node_score": score}, metadata)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--checkpoint", type=Path, required=True, help="state dict, as torch.save(model.state_dict()) writes it")
    p.add_argument("--platform", choices=("windows", "linux"), required=True)
    p.add_argument("--package", type=Path, required=True, help="folder of the package to write")
    p.add_argument("--name", required=True)
    p.add_argument("--version", required=True)
    p.add_argument("--activation", choices=("relu", "elu"), default="relu")
    p.add_argument("--temperature", type=float, default=1.0, help="divides the logit: calibration of your own")
    p.add_argument("--bias", type=float, default=0.0, help="is added to the logit after that")
    a = p.parse_args()
    try:
        checkpoint = load(a.checkpoint)
    except Refused as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    metadata = {"feature_version": FEATURE_VERSION, "platform": a.platform}
    model = Emitter(checkpoint, a.activation).emit(a.temperature, a.bias, metadata)
    written = store_package(
        a.package,
        model.SerializeToString(),
        name=a.name,
        version=a.version,
        platform=a.platform,
        calibration={"method": "of the importer's choice", "temperature": a.temperature, "bias": a.bias},
        training={"checkpoint": digest(a.checkpoint), "imported_from": "PyTorch Geometric"},
        metrics={},
    )
    sizes = f"{len(checkpoint.layers)} layers, {checkpoint.hidden} hidden, {checkpoint.heads} heads"
    print(f"wrote {a.package} ({written[:12]}): {sizes}. Its scores are not calibrated for the alert threshold unless you did.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
