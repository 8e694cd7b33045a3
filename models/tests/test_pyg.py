"""The importer of PyTorch Geometric checkpoints, against the layers written out type by type."""

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from trainer import pyg
from trainer.contract import EDGE_FEATURES, EDGE_TYPES, NODE_FEATURES, NODE_TYPES, synthetic, union
from trainer.package import session

HIDDEN, HEADS, LAYERS = 16, 2, 3
RELATIONS = [
    ("process", "spawned", "process"),
    ("process", "wrote", "file"),
    ("process", "executed", "script"),
    ("process", "executed", "file"),
    ("process", "connected-to", "network"),
    ("process", "performed", "syscall"),
    ("process", "performed", "process"),
]
RELATIONS += [(t, f"rev_{r}", s) for s, r, t in RELATIONS]


def state(kind: str, edge_features: bool) -> dict[str, torch.Tensor]:
    """A random checkpoint with the names that PyTorch Geometric gives."""
    r = torch.Generator().manual_seed(3)

    def rand(*shape):
        return torch.randn(*shape, generator=r) * 0.5

    out = {"lin_out.weight": rand(2, HIDDEN), "lin_out.bias": rand(2)}
    for t in NODE_TYPES:
        out |= {f"lin_in.{t}.weight": rand(HIDDEN, NODE_FEATURES), f"lin_in.{t}.bias": rand(HIDDEN)}
    for layer in range(LAYERS):
        for relation in RELATIONS:
            p = f"convs.{layer}.convs.<{'___'.join(relation)}>."
            out[p + "bias"] = rand(HIDDEN)
            if kind == "v2":
                out |= {p + "att": rand(1, HEADS, HIDDEN // HEADS)}
                for side in ("lin_l", "lin_r"):
                    out |= {f"{p}{side}.weight": rand(HIDDEN, HIDDEN), f"{p}{side}.bias": rand(HIDDEN)}
            else:
                out |= {p + f"att_{end}": rand(1, HEADS, HIDDEN // HEADS) for end in ("src", "dst")}
                out |= {f"{p}lin_{end}.weight": rand(HIDDEN, HIDDEN) for end in ("src", "dst")}
            if edge_features:
                out[p + "lin_edge.weight"] = rand(HIDDEN, EDGE_FEATURES)
                if kind == "v1":
                    out[p + "att_edge"] = rand(1, HEADS, HIDDEN // HEADS)
    return out


def edges_of(b, relation):
    """Edge numbers, sources and targets of a relation."""
    source, name, target = relation
    src, dst = (b.edge_dst, b.edge_src) if name.startswith("rev_") else (b.edge_src, b.edge_dst)
    of = EDGE_TYPES.index(name.removeprefix("rev_"))
    at = [
        e
        for e in range(len(src))
        if b.edge_type[e] == of
        and b.node_type[src[e]] == NODE_TYPES.index(source)
        and b.node_type[dst[e]] == NODE_TYPES.index(target)
    ]
    return at, src, dst


def by_hand(s, b, kind):
    """Node states and logits, edge by edge."""
    x = torch.stack([F.relu(f @ s[f"lin_in.{NODE_TYPES[t]}.weight"].T + s[f"lin_in.{NODE_TYPES[t]}.bias"]) for f, t in zip(b.node_feat, b.node_type)])
    for layer in range(LAYERS):
        y = torch.zeros_like(x)
        for relation in RELATIONS:
            p = f"convs.{layer}.convs.<{'___'.join(relation)}>."
            at, src, dst = edges_of(b, relation)
            y[b.node_type == NODE_TYPES.index(relation[2])] += s[p + "bias"]
            for node in set(int(dst[e]) for e in at):
                mine = [e for e in at if dst[e] == node]
                logits, values = [], []
                for e in mine:
                    edge = b.edge_feat[e] @ s[p + "lin_edge.weight"].T if p + "lin_edge.weight" in s else torch.zeros(HIDDEN)
                    head = lambda v: v.view(HEADS, -1)
                    if kind == "v2":
                        l = x[src[e]] @ s[p + "lin_l.weight"].T + s[p + "lin_l.bias"]
                        r = x[dst[e]] @ s[p + "lin_r.weight"].T + s[p + "lin_r.bias"]
                        logits.append((F.leaky_relu(head(l + r + edge), 0.2) * s[p + "att"][0]).sum(1))
                    else:
                        l, r = x[src[e]] @ s[p + "lin_src.weight"].T, x[dst[e]] @ s[p + "lin_dst.weight"].T
                        a = (head(l) * s[p + "att_src"][0]).sum(1) + (head(r) * s[p + "att_dst"][0]).sum(1)
                        if p + "att_edge" in s:
                            a = a + (head(edge) * s[p + "att_edge"][0]).sum(1)
                        logits.append(F.leaky_relu(a, 0.2))
                    values.append(head(l))
                share = torch.softmax(torch.stack(logits), 0)
                y[node] += (share[:, :, None] * torch.stack(values)).sum(0).reshape(-1)
        x = F.relu(y)
    graphs = [x[b.node_graph == g].mean(0) for g in range(len(b.graph_feat))]
    return torch.stack(graphs) @ s["lin_out.weight"].T + s["lin_out.bias"]


class ImportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name)

    def imported(self, s, **options):
        torch.save(s, self.path / "model.pt")
        arguments = ["pyg", "--checkpoint", str(self.path / "model.pt"), "--platform", "linux"]
        arguments += ["--package", str(self.path / "package"), "--name", "n", "--version", "1"]
        arguments += [x for k, v in options.items() for x in (f"--{k}", str(v))]
        with mock.patch("sys.argv", arguments), mock.patch("builtins.print"):
            self.assertEqual(pyg.main(), 0)
        return session((self.path / "package" / "model.onnx").read_bytes())

    def test_scores_are_those_of_the_layers(self):
        b = union([synthetic(1, 30, 90, 3, 2), synthetic(2, 1, 0, 0, 0), synthetic(4, 12, 40, 1, 1)])
        for kind, edge_features in (("v1", False), ("v1", True), ("v2", False), ("v2", True)):
            with self.subTest(kind=kind, edge_features=edge_features):
                s = state(kind, edge_features)
                want = by_hand(s, b, kind)
                logits, attention, node = self.imported(s).run(None, b.numpy())
                np.testing.assert_allclose(logits[:, 1] - logits[:, 0], want[:, 1] - want[:, 0], atol=1e-4, rtol=1e-4)
                known = {e for r in RELATIONS for e in edges_of(b, r)[0]}
                self.assertEqual({e for e in range(len(attention)) if attention[e].any()}, known)
                self.assertTrue(((0 <= attention) & (attention <= 1 + 1e-5)).all() and ((0 <= node) & (node <= 1)).all())
                cooler = self.imported(s, temperature=2.0, bias=0.5).run(["logits"], b.numpy())[0]
                np.testing.assert_allclose(cooler[:, 1] - cooler[:, 0], (want[:, 1] - want[:, 0]) / 2 + 0.5, atol=1e-4, rtol=1e-4)

    def test_what_is_not_of_the_architecture_is_refused(self):
        good = state("v2", False)
        wrong = {
            "takes 7 features": good | {"lin_in.file.weight": torch.zeros(HIDDEN, 7)},
            "3 classes": good | {"lin_out.weight": torch.zeros(3, HIDDEN)},
            "no place for extra.weight": good | {"extra.weight": torch.zeros(1)},
            "no such relation": good | {"convs.0.convs.<process___mailed___file>.bias": torch.zeros(HIDDEN)},
            "no relation to script": {k: v for k, v in good.items() if not k.endswith("script>" + k.rpartition(">")[2]) or "convs" not in k},
            "layers are": {k.replace("convs.2.convs", "convs.5.convs"): v for k, v in good.items()},
        }
        for reason, s in wrong.items():
            with self.subTest(reason), self.assertRaisesRegex(pyg.Refused, reason):
                pyg.understand(s)

    def test_a_checkpoint_runs_nothing(self):
        mark = self.path / "ran"

        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(mark),)

        torch.save({"lin_out.weight": Bomb()}, self.path / "bomb.pt")
        with self.assertRaisesRegex(pyg.Refused, "cannot be read as plain tensors"):
            pyg.load(self.path / "bomb.pt")
        self.assertFalse(mark.exists())


if __name__ == "__main__":
    unittest.main()
