"""ONNX against PyTorch: the same numbers on graphs of every awkward shape, and no influence of batch mates."""

import unittest

import numpy as np
import onnxruntime as ort
import torch

from trainer.contract import INPUTS, OUTPUTS, synthetic, union
from trainer.export import emit, round_tables
from trainer.net import Detector, Gat, LinearHead, Shape


def detector(**shape) -> Detector:
    torch.manual_seed(7)
    d = Detector(Gat(Shape(**shape)), LinearHead()).eval()
    d.linear.weight.uniform_(0, 1)
    d.linear.square.uniform_(0, 1)
    d.linear.power.fill_(0.25)
    d.gain.copy_(torch.tensor([0.8, 1.2]))
    d.offset.fill_(-0.3)
    d.calibration.knots.copy_(torch.tensor([-30.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]))
    d.calibration.slopes.copy_(torch.tensor([0.1, 0.5, 0.3, -0.2, 1.0, -1.0, 0.2, 0.4, -0.3, 0.1]))
    d.calibration.offset.fill_(-4.0)
    for layer in d.gat.layers:
        torch.nn.init.normal_(layer.relation, std=0.5)
        torch.nn.init.normal_(layer.gate_in, 1, 0.2)
    round_tables(d)
    return d


def session(d: Detector) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(emit(d, {}).SerializeToString(), options, ["CPUExecutionProvider"])


SIZES = [(1, 0, 0, 0), (2, 1, 0, 1), (5, 0, 7, 0), (40, 90, 300, 200), (3, 2, 1, 1), (237, 485, 2000, 900)]


class ExportTest(unittest.TestCase):
    def setUp(self):
        self.graphs = [synthetic(i, *sizes) for i, sizes in enumerate(SIZES)]

    def test_matches_pytorch(self):
        for shape in ({}, {"use_tokens": False, "hidden": 64, "layers": 2}):
            d = detector(**shape)
            s = session(d)
            self.assertEqual([i.name for i in s.get_inputs()], [i[0] for i in INPUTS])
            self.assertEqual([o.name for o in s.get_outputs()], [o[0] for o in OUTPUTS])
            for batch in [*self.graphs, union(self.graphs)]:
                with torch.no_grad():
                    want = [v.numpy() for v in d(batch)]
                got = s.run(None, batch.numpy())
                for w, g in zip(want, got):
                    self.assertEqual(w.shape, g.shape)
                    np.testing.assert_allclose(g, w, atol=1e-4, rtol=0)

    def test_no_edges_at_all(self):
        got = session(detector()).run(None, union([self.graphs[0], self.graphs[2]]).numpy())
        self.assertTrue(np.isfinite(got[0]).all())
        self.assertEqual(got[1].shape, (0, 2))

    def test_batch_mates_change_no_bit(self):
        s = session(detector())
        alone = [s.run(None, g.numpy()) for g in self.graphs]
        together = s.run(None, union(self.graphs).numpy())
        for k, axis in enumerate(("B", "E", "N")):
            np.testing.assert_array_equal(np.concatenate([a[k] for a in alone]), together[k], axis)


if __name__ == "__main__":
    unittest.main()
