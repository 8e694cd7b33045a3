"""Labels, scores and the whole training run on a small corpus with a planted signal."""

import json
import shutil
import tempfile
import tomllib
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tests import synthetic
from trainer import backtest, calibrate, fit, folds, linear, report, train
from trainer.data import AMBIGUOUS, BENIGN, MALICIOUS, Labels, load_labels, read, read_feedback, read_own
from trainer.evaluate import Scored, calibration_error, roc_auc
from trainer.net import Shape
from trainer.package import reference, session
from trainer.reading import between

TINY = fit.Recipe(shape=Shape(hidden=16, heads=2, layers=2, embedding=4), epochs=4, share=1.0, batch_edges=300)


class TrainTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def corpus(self, **options):
        arrow, labels = synthetic.write(self.path, **options)
        return read(arrow, load_labels(labels))

    def test_labels_of_windows_and_nodes(self):
        windows = self.corpus()
        first = [w for w in windows if w.recording == "r0"]
        self.assertEqual([w.label for w in first[:5]], [BENIGN] * 5)
        # Attack from 330 s to 450 s: windows that end after 330 s and start by 450 s.
        self.assertEqual([i for i, w in enumerate(first) if w.label == MALICIOUS], list(range(6, 16)))
        self.assertEqual({w.label for w in first[16:]}, {AMBIGUOUS})
        self.assertEqual(list(first[7].node_label[:2]), [1, 0])
        self.assertTrue((first[0].node_label == 0).all())
        self.assertTrue(all(w.label == BENIGN for w in windows if w.recording == "r1"))

    def test_linux_nodes_are_suspect_while_the_attack_runs(self):
        w = next(w for w in self.corpus(linux=True) if w.label == MALICIOUS)
        self.assertTrue((w.node_label[:-1] == 1).all())
        self.assertEqual(w.node_label[-1], -1)

    def test_false_alerts_merge_and_thresholds_keep_their_budget(self):
        windows = self.corpus()
        s = Scored(windows)
        score = np.zeros(len(windows))
        r1 = [i for i, w in enumerate(windows) if w.recording == "r1"]
        score[r1[0]] = score[r1[5]] = 3.0  # 150 s apart: one alert
        self.assertEqual(s.false_alerts(score, 2.0), 1)
        score[r1[19]] = 3.0  # 420 s later: another
        self.assertEqual(s.false_alerts(score, 2.0), 2)
        for budget, want in ((0, 3.0), (1, 3.0), (2, 0.0)):
            t = s.threshold(score, budget)
            self.assertLessEqual(s.false_alerts(score, t), budget)
            self.assertGreater(t, want - 1e-9)
        score[[i for i in range(len(windows)) if windows[i].label == MALICIOUS]] = 4.0
        self.assertEqual(s.curve(score, (0,)), [3])

    def test_areas_and_calibration(self):
        self.assertAlmostEqual(roc_auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])), 0.875)
        p = np.array([0.1, 0.1, 0.9, 0.9])
        self.assertAlmostEqual(calibration_error(p, np.array([0, 0, 1, 1.0]), np.ones(4)), 0.1)

    def test_a_curve_is_monotone_and_passes_through_the_threshold(self):
        r = np.random.default_rng(1)
        z = np.concatenate([r.normal(0, 1, 400), r.normal(3, 1, 300)])
        y = np.repeat([0.0, 1.0], [400, 300])
        curve = calibrate.fit_curve(z, y, np.ones(700), 1.8)
        self.assertAlmostEqual(float(curve.probability(np.array([1.8]))[0]), 0.7, places=6)
        p = curve.probability(np.linspace(-30, 20, 2000))
        self.assertTrue((np.diff(p) > 0).all())
        self.assertLess(calibration_error(curve.probability(z), y, np.ones(700)), 0.05)
        module = calibrate.Calibration()
        curve.store(module)
        got = module(torch.from_numpy(z).float()).numpy()
        np.testing.assert_allclose(got, curve.logit(z), atol=1e-3)

    def test_linear_heads_find_the_flag(self):
        for linux, chosen in ((False, linear.fit_windows), (True, linear.fit_linux)):
            windows = self.corpus(linux=linux)
            data = linear.Instances(windows)
            f = chosen(data, np.ones(len(data.window), bool))
            self.assertGreater(f.weight[synthetic.BAD_FLAG], max(0.5, f.weight[synthetic.PLAIN_FLAG]))
            score = data.maximum(f.score(data.x), len(windows))
            label = np.array([w.label for w in windows])
            self.assertEqual(roc_auc(score[label == 1], score[label == 0]), 1.0)

    def test_a_net_may_use_what_two_families_and_benign_windows_show(self):
        def only(w, tok, tree):
            ids = lambda values: torch.tensor(values, dtype=torch.int64)  # noqa: E731
            graph = w.graph._replace(tok_id=ids(tok), tok_node=ids([0] * len(tok)), tree_id=ids(tree), tree_node=ids([0] * len(tree)))
            return replace(w, graph=graph)

        # Of families f0 to f2: attacked, benign, attacked.
        r0, r1, r2 = (next(w for w in self.corpus() if (w.recording, w.label) == (r, l)) for r, l in (("r0", 1), ("r1", 0), ("r2", 1)))
        # Own tokens 1: two families, attacked; 2: two, one benign; 3: benign, of one. Signs 7: two families, attacked; 8: one.
        windows = [only(r0, [1, 2], [7, 8]), only(r1, [2, 3], []), only(r2, [1], [7])]
        usable = fit.usable_ids(windows)
        self.assertEqual([torch.nonzero(usable[k]).flatten().tolist() for k in ("tok", "tree")], [[2], [7]])
        rest = fit.restricted(windows[0].graph, usable)
        self.assertEqual([c.tolist() for c in (rest.tok_id, rest.tok_node, rest.tree_id, rest.tree_node)], [[2], [0], [7], [0]])
        gat = fit.Gat(TINY.shape)
        fit.forget_unusable(gat, usable)
        self.assertEqual([torch.nonzero(t.abs().sum(1)).flatten().tolist() for t in (gat.tokens, gat.trees)], [[2], [7]])
        # One family alone is all that there is.
        self.assertEqual(int(fit.usable_ids([windows[1]])["tok"].sum()), 2)

    def test_training_repeats_bit_for_bit(self):
        windows = self.corpus(recordings=2)
        a, b = (fit.score(fit.train(windows, TINY, 3), windows) for _ in range(2))
        np.testing.assert_array_equal(a[0], b[0])
        self.assertFalse(np.array_equal(a[0], fit.score(fit.train(windows, TINY, 4), windows)[0]))

    def run_main(self, platform: str, *more: str):
        arguments = ["train", "--platform", platform, "--windows", str(self.path / "windows.arrow")]
        arguments += ["--labels", str(self.path / "labels.json"), "--work", str(self.path / "work")]
        arguments += ["--package", str(self.path / "package"), "--version", "t", "--seeds", "2", *more]
        with mock.patch("sys.argv", arguments), mock.patch.dict(train.RECIPES, {platform: TINY}), mock.patch.object(train, "say"):
            self.assertEqual(train.main(), 0)
        return json.loads((self.path / "work" / "report.json").read_text())

    def report(self, platform: str, windows):
        # What the product would say, if it gave every window the probability that its label asks for.
        verdicts = [[w.recording, w.host, w.start_ms, w.end_ms, 0.9 if w.label == MALICIOUS else 0.1, False] for w in windows]
        labels = load_labels(self.path / "labels.json")
        rows = [
            {"id": r, "detected": True if any(l.attack.values()) else None, "seconds_to_detect": 30.0 if any(l.attack.values()) else None, "false_alerts": 0, "benign_endpoint_hours": 0.1}
            for r, l in labels.items()
        ]
        figures = backtest.figures(platform, labels, rows, backtest.judged(labels, verdicts))
        self.assertEqual((figures["detected_at_0.7"], figures["false_alerts_at_0.7"], figures["curve"][0]), (3, 0, 3))
        self.assertAlmostEqual(figures["expected_calibration_error"], 0.1)
        own = backtest.own_figures(rows)
        self.assertEqual((own["recordings"], own["false_alerts_at_0.7"], own["attacks"], own["detected_at_0.7"]), (6, 0, 3, 3))
        (self.path / "work" / "backtest.json").write_text(json.dumps({"splits": {"family-out": figures}, "own": {"family-out": own}}))
        out = self.path / "reports"
        (self.path / platform).symlink_to(self.path / "work")
        with mock.patch("sys.argv", ["report", "--work", str(self.path), "--out", str(out)]):
            self.assertEqual(report.main(), 0)
        text = (out / "README.md").read_text()
        self.assertIn("| linear head, family-out | 3/3/3/3 | 1.000 |", text)
        self.assertIn("0 false alerts in 0.6 benign host-hours of 6 recordings, 0.00 an hour. 3 of 3 emulated attacks are detected", text)
        self.assertIn("| family-out | 3 of 3, 0 | 3/3/3/3 | 1.000", text)
        self.assertEqual(len(list(out.glob(f"{platform}-*.png"))), 5 if platform == "windows" else 4)

    def test_a_whole_run_and_its_package(self):
        for platform, more in (("windows", []), ("linux", ["--linear-only"])):
            with self.subTest(platform):
                windows = self.corpus(linux=platform == "linux")
                figures = self.run_main(platform, *more)
                self.assertEqual(figures["rows"]["linear head, family-out"]["detected"][0], 3)
                self.assertIn(f"{'untyped net' if platform == 'windows' else 'gat on the corpus alone'}, seed 1", figures["rows"])
                self.assertEqual([len(l) for l in figures["losses"]], [TINY.epochs] * 2 if platform == "windows" else [])
                manifest = tomllib.loads((self.path / "package" / "manifest.toml").read_text())
                self.assertEqual(manifest["platform"], platform)
                s = session((self.path / "package" / "model.onnx").read_bytes())
                peak = {MALICIOUS: [], BENIGN: []}
                for w in windows:
                    if w.label in peak:
                        z = s.run(["logits"], w.graph.numpy())[0][0]
                        peak[w.label].append(z[1] - z[0])
                self.assertGreater(np.median(peak[MALICIOUS]), max(peak[BENIGN]))
                # Again: everything comes from the work folder, and the package is the same.
                before = (self.path / "package" / "manifest.toml").read_bytes()
                with mock.patch.object(fit, "train", side_effect=AssertionError("computed again")):
                    self.run_main(platform, *more)
                self.assertEqual((self.path / "package" / "manifest.toml").read_bytes(), before)
                self.report(platform, windows)
                shutil.rmtree(self.path / "work")

    def test_feedback_trains_and_is_not_tested(self):
        self.corpus()
        folder = self.path / "feedback"
        folder.mkdir()
        synthetic.write(folder, recordings=2, name="feedback-", view="feedback")
        self.assertEqual({w.view for w in read_feedback(folder, "windows")}, {"feedback"})
        self.assertEqual(read_feedback(folder, "linux"), [])
        plain = self.run_main("windows", "--linear-only")
        with mock.patch.object(linear, "fit", wraps=linear.fit) as fitted:
            more = self.run_main("windows", "--linear-only", "--feedback", str(folder))
        self.assertEqual(more["windows"], plain["windows"])
        self.assertEqual(more["rows"]["linear head, family-out"]["scenarios"], 3)
        _, data, chosen = fitted.call_args_list[0].args
        names = {w.recording for w in read_feedback(folder, "windows")}
        self.assertTrue(names and chosen[-1], "what was decided on is among what is learned from")

    def test_recordings_of_ones_own_are_dealt_out_among_the_folds(self):
        self.corpus(linux=True)
        folder = self.path / "background"
        (folder / "a").mkdir(parents=True)
        # Of six, three are attacked: `a0`, `a2`, `a4`, as in the corpus.
        arrow, labels = synthetic.write(folder, recordings=6, linux=True, name="own-")
        labels.rename(folder / "a" / "labels.json")
        windows, known = read_own(arrow, folder)
        self.assertEqual(({w.own for w in windows}, {w.label for w in windows}, len(known)), ({True}, {BENIGN, MALICIOUS}, 6))
        with mock.patch.object(linear, "fit", wraps=linear.fit) as fitted:
            figures = self.run_main("linux", "--linear-only", "--background", str(arrow), "--background-labels", str(folder))
        self.assertEqual(figures["rows"]["linear head, family-out"]["scenarios"], 3)
        everything = read(self.path / "windows.arrow", load_labels(self.path / "labels.json")) + windows
        for call in fitted.call_args_list:
            _, data, chosen = call.args
            learned = {everything[w].recording for w in set(data.window[chosen])}
            for k in range(6):
                self.assertEqual(f"own-{k}" in learned, f"r{k}" in learned, "dealt out alike, and no attack like a tested one")

    def test_an_attack_of_ones_own_trains_where_none_like_it_is_tested(self):
        def labels(**attacks):
            record = {"family": "", "start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z", "hosts": [], "benign_intervals": []}
            return {r: Labels({**record, "attacks": a}) for r, a in attacks.items()}

        corpus = labels(x=["cron_beacon"], y=["ransom"], z=["b64_dropper"])
        own = labels(beacon=["cron_beacon_service"], odd=["unheard_of"], work=[])
        parts = [(r, [r], [q for q in corpus if q != r]) for r in corpus]
        self.assertEqual(
            folds.with_own(parts, corpus, own),
            [("x", ["x", "odd", "beacon"], ["y", "z", "work"]), ("y", ["y", "work"], ["x", "z", "beacon", "odd"]), ("z", ["z"], ["x", "y", "odd", "work"])],
        )

    def test_a_look_counts_once_in_a_recording(self):
        windows = self.corpus(linux=True)
        data = linear.Instances(windows)
        looks = {(data.recording[i], data.label[i], tuple(data.x[i].indices)) for i in np.flatnonzero(data.trainable & (data.label >= 0))}
        chosen = np.flatnonzero(data.distinct)
        self.assertEqual(sorted(looks), sorted((data.recording[i], data.label[i], tuple(data.x[i].indices)) for i in chosen))

    def test_ordinary_work_of_ones_own_lifts_the_threshold(self):
        windows = self.corpus()
        label = np.array([w.label for w in windows])
        score = np.where(label == MALICIOUS, 4.0, 1.0)
        ordinary = [replace(w, own=True) for w in windows if w.label == BENIGN]
        every, none = np.append(score, np.full(len(ordinary), 3.0)), Scored([])
        for own, want in ((none, 1.5), (Scored(ordinary), 3.5)):
            self.assertAlmostEqual(between(Scored(windows), own, every, 1), want, places=6)

    def test_variants_of_an_attack_are_of_its_group(self):
        self.assertEqual([folds.family_of(a) for a in ("cron_beacon_service", "cron_beacon", "dropper_web", "a0")], ["implant", "implant", "implant", "a0"])

    def test_results_do_not_depend_on_the_number_of_jobs(self):
        self.corpus(recordings=4)
        one = self.run_main("windows")
        shutil.rmtree(self.path / "work")
        self.assertEqual(self.run_main("windows", "--jobs", "2"), one)
        self.assertEqual({"boosting, family-out", "untyped net, seed 0", "combined, mean of seeds"} - set(one["rows"]), set())

    def test_the_reference_counts_benign_windows_by_the_products_bins(self):
        windows = self.corpus()
        for w in windows:
            w.graph.graph_feat[0] = torch.tensor([0.0, 0.125, 0.25, 2.5, 9.0, 0.375, 0.1, 0.5])
        counts = reference(windows, np.full(len(windows), 0.1))
        benign = sum(w.label == BENIGN for w in windows)
        where = {name: [(k, n) for k, n in enumerate(row) if n] for name, row in counts.items()}
        bins = {"attack_prob": 1, "nodes": 0, "edges": 1, "events": 2, "processes": 20, "files": 20, "scripts": 3, "network": 0, "activity": 3}
        self.assertEqual(where, {name: [(k, benign)] for name, k in bins.items()})
        self.assertEqual([len(counts[name]) for name in ("attack_prob", "nodes", "activity")], [10, 21, 7])


if __name__ == "__main__":
    unittest.main()
