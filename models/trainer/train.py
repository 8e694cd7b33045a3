"""Trains one platform's model: out-of-fold scores, calibration, the final fit, the package; and for each fold
packages that saw nothing of it, for `trainer.backtest`.

    python -m trainer.train --platform windows --windows W.arrow --labels labels.json --work DIR --package DIR

Every fold's scores are kept in the work folder under a digest of what they depend on, so that an interrupted
run goes on where it stopped. Nothing here reads a clock but for the progress lines.

What ships is decided beforehand, not by the scores: the linear head, and the GAT of the first seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import baselines, fit, folds, linear
from .calibrate import ALERT_PROBABILITY
from .data import AMBIGUOUS, BENIGN, MALICIOUS, Labels, Window, digest, load_labels, read, read_feedback, read_own
from .evaluate import Scored, calibration_error
from .net import Detector, Gat, Shape
from .package import reference, write
from .reading import Parts, Reading, assemble, calibration_mass, combined
from .study import Result, Study, say

#: Most examples of real windows in a package's self-test vector, and most nodes of one.
EXAMPLES, EXAMPLE_NODES = 3, 40
#: Seeds of a net that is a baseline only: at most so many.
BASELINE_SEEDS = 2
#: What everything but nothing held out is called in the work folder.
EVERYTHING = "everything"
#: Where a net's losses lie beside its weights.
LOSS = "loss"

RECIPES = {
    "windows": fit.Recipe(shape=Shape(use_tokens=True)),
    # Twenty times the edges of a Windows window, in three views.
    "linux": fit.Recipe(shape=Shape(use_tokens=False), share=0.2),
}


def linear_head(study: Study, name: str, train: list[str]) -> Result:
    """The linear head that saw these recordings only, and its scores of all windows."""

    def compute():
        instances = study.instances
        chosen = linear.fit(study.platform, instances, np.isin(study.names, train)[instances.window])
        say(f"linear head, {name}: fitted")
        score = instances.maximum(chosen.score(instances.x), len(study.windows))
        return {"score": score, "weight": chosen.weight, "square": chosen.square, "rest": np.array([chosen.floor, chosen.power, chosen.bias])}

    return Result(f"linear-{name}", {"train": train, "code": 5}, compute)


def fitted(kept: dict[str, np.ndarray]) -> linear.Fit:
    return linear.Fit(kept["weight"], kept["square"], *map(float, kept["rest"]))


def trained(study: Study, name: str, train: list[str], recipe: fit.Recipe, seed: int) -> Result:
    """A GAT that saw these recordings only: its weights, and the mean loss of each epoch."""
    kind = "gat" if recipe.shape.typed else "untyped"

    def compute():
        losses: list[float] = []
        gat = fit.train(study.of(train), recipe, seed, losses)
        say(f"{kind}, {name}, seed {seed}: trained, loss {losses[0]:.3f} to {losses[-1]:.3f}")
        return {**{k: v.numpy() for k, v in gat.state_dict().items()}, LOSS: np.array(losses)}

    return Result(f"{kind}-{name}-{seed}", {"train": train, "recipe": asdict(recipe), "seed": seed, "code": 4}, compute)


def net(kept: dict[str, np.ndarray], recipe: fit.Recipe) -> Gat:
    gat = Gat(recipe.shape)
    gat.load_state_dict({k: torch.from_numpy(v) for k, v in kept.items() if k != LOSS})
    return gat.eval()


def out_of_fold(study: Study, parts: list[folds.Fold], result) -> np.ndarray:
    """Scores of the tested windows, each by what `result(fold, train)` made without its recording."""
    score = np.full(len(study.windows), np.nan)
    for fold, test, train in parts:
        members = np.isin(study.names, test)
        score[members] = study.get(result(fold, train))["score"][members]
    return score[study.is_tested]


def gat_out_of_fold(study: Study, parts: list[folds.Fold], recipe: fit.Recipe, result) -> np.ndarray:
    """The same for GATs: worst processes."""
    worst = np.full(len(study.tested), np.nan)
    for fold, test, train in parts:
        members = np.isin(study.tested_names, test)
        gat = net(study.get(result(fold, train)), recipe)
        worst[members] = fit.score(gat, [w for w, m in zip(study.tested, members) if m])[0]
    return worst


@dataclass
class Run:
    """One model on every fold: its parts out of fold, and how to get its GAT for a fold."""

    parts: Parts
    gat: object


def models(study: Study, parts: list[folds.Fold], recipe: fit.Recipe, seeds: int, lin: np.ndarray) -> dict[str, Run]:
    """The models of one way of leaving out; the first is what ships."""
    if not seeds:
        return {"ships": Run([lin], lambda *_: None)}

    def run_of(seed: int) -> Run:
        def result(fold: str, train: list[str]) -> Result:
            return trained(study, fold, train, recipe, seed)

        return Run([gat_out_of_fold(study, parts, recipe, result), lin], lambda fold, train: net(study.get(result(fold, train)), recipe))

    return {f"seed {seed}" if seed else "ships": run_of(seed) for seed in range(seeds)}


@dataclass
class BaselineNet:
    """A net that stands in the table only: one without types where a GAT ships, the GAT where none does. The latter trains on
    the corpus alone, for time's sake."""

    name: str
    recipe: fit.Recipe
    #: What it may not train on.
    not_for_it: frozenset[str]
    seeds: range

    @classmethod
    def of(cls, study: Study, recipe: fit.Recipe, a) -> BaselineNet:
        seeds = range(min(a.seeds, BASELINE_SEEDS))
        if a.linear_only:
            own = frozenset(w.recording for w in study.windows) - {w.recording for w in study.corpus}
            return cls("gat on the corpus alone", recipe, own, seeds)
        return cls("untyped net", replace(recipe, shape=replace(recipe.shape, typed=False)), frozenset(), seeds)

    def result(self, study: Study, fold: str, train: list[str], seed: int) -> Result:
        return trained(study, fold, [r for r in train if r not in self.not_for_it], self.recipe, seed)


def everything_needed(
    study: Study, splits: dict, whole: list[str], recipe: fit.Recipe, seeds: int, baseline: BaselineNet
) -> list[Result]:
    """All that is to be computed."""
    strictest = list(splits)[-1]
    needed = [linear_head(study, EVERYTHING, whole)]
    for split, parts in splits.items():
        for fold, _, train in parts:
            needed.append(linear_head(study, fold, train))
            if split == strictest:
                needed += [baselines.window_regression(study, fold, train), baselines.boosting(study, fold, train)]
    if any(map(study.missing, needed)):
        _ = study.instances.by_window, study.instances.distinct  # made once, before processes part
    for parts in splits.values():
        for fold, _, train in [*parts, (EVERYTHING, [], whole)]:
            needed += [trained(study, fold, train, recipe, seed) for seed in range(seeds)]
    return needed + [baseline.result(study, fold, train, seed) for fold, _, train in splits[strictest] for seed in baseline.seeds]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--platform", choices=("windows", "linux"), required=True)
    p.add_argument("--windows", type=Path, required=True, help="Arrow file of `logster export-windows`")
    p.add_argument("--labels", type=Path, required=True, help="labels.json of the corpus")
    p.add_argument("--work", type=Path, required=True, help="folder for resumable results")
    p.add_argument("--package", type=Path, required=True, help="folder of the package to write")
    p.add_argument("--version", required=True, help="version of the package")
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--linear-only", action="store_true", help="leave the GAT untrained and out of the score")
    p.add_argument("--feedback", type=Path, help="folder of `logster export-feedback`: more windows to train on")
    p.add_argument("--background", type=Path, help="Arrow file of recordings of one's own: they train, and are judged out of fold")
    p.add_argument("--background-labels", type=Path, help="folder of the labels.json that go with it")
    p.add_argument("--threads", type=int, default=1, help="threads of one training; more than one do not repeat bit for bit")
    p.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    labels = load_labels(a.labels)
    sources = [a.windows, a.labels]
    windows = read(a.windows, labels)
    present = {w.recording for w in windows}
    labels = {r: l for r, l in labels.items() if r in present}
    feedback = read_feedback(a.feedback, a.platform) if a.feedback else []
    own, own_labels = read_own(a.background, a.background_labels) if a.background else ([], {})
    sources += [a.feedback / f"{a.platform}.arrow"] if feedback else []
    sources += [a.background] if own else []
    data_digest = hashlib.sha256("".join(map(digest, sources)).encode()).hexdigest()
    decided = sorted({w.recording for w in feedback})
    # What analysts decided on trains in every fold.
    splits = {
        k: [(n, test, train + decided) for n, test, train in folds.with_own(parts, labels, own_labels)]
        for k, parts in folds.splits(a.platform, labels).items()
    }
    study = Study(a.platform, windows + feedback + own, a.work, data_digest)
    counts = {k: sum(w.label == v for w in study.corpus) for k, v in (("malicious", MALICIOUS), ("benign", BENIGN), ("left out", AMBIGUOUS))}
    say(f"{a.platform}: {len(labels)} recordings, windows {counts}, {sum(len(w.graph.edge_src) for w in study.corpus)} edges")
    return run(a, study, splits, labels, decided + list(own_labels), counts)


def run(a, study: Study, splits: dict, labels: dict[str, Labels], extra: list[str], counts: dict) -> int:
    report: dict = {"platform": a.platform, "version": a.version, "windows": counts, "rows": {}}
    recipe, seeds = RECIPES[a.platform], 0 if a.linear_only else a.seeds
    whole = sorted(labels) + extra
    baseline = BaselineNet.of(study, recipe, a)
    study.prepare(everything_needed(study, splits, whole, recipe, seeds, baseline), a.jobs if a.threads == 1 else 1)

    def note(name: str, score: np.ndarray) -> None:
        report["rows"][name] = r = study.summary(score)
        say(f"{name:34s} auc {r['roc_auc']:.3f} ({r['roc_auc_all']:.3f} all)  detected {r['detected']} of {r['scenarios']} at {r['budgets']}  transfer {r['transfer']}")

    note("event count", baselines.event_count(study))
    readings: dict[str, Reading] = {}
    probabilities: dict[str, np.ndarray] = {}
    kept = calibration_mass(study.tested) > 0
    truth = study.tested_label.astype(float)

    def error(probability: np.ndarray) -> float:
        return calibration_error(probability[kept], truth[kept], np.ones(kept.sum()))

    for split, parts in splits.items():
        if split == list(splits)[-1]:
            note(f"window logistic regression, {split}", out_of_fold(study, parts, lambda f, t: baselines.window_regression(study, f, t)))
            note(f"boosting, {split}", out_of_fold(study, parts, lambda f, t: baselines.boosting(study, f, t)))
        lin = out_of_fold(study, parts, lambda f, t: linear_head(study, f, t))
        note(f"linear head, {split}", lin)
        if split == list(splits)[-1]:
            for seed in baseline.seeds:
                worst = gat_out_of_fold(study, parts, baseline.recipe, lambda f, t: baseline.result(study, f, t, seed))
                note(f"{baseline.name}, seed {seed}", worst)
        runs = models(study, parts, recipe, seeds, lin)
        # Seeds are calibrated together: they differ by luck alone.
        together = [one.parts for one in runs.values()]
        left_out = {name: np.full(len(study.tested), np.nan) for name in runs}
        packages = a.work / "packages" / split
        shutil.rmtree(packages, ignore_errors=True)  # of seeds that are no more
        for fold, test, train in parts:
            inside = np.isin(study.tested_names, test)
            head = fitted(study.get(linear_head(study, fold, train)))
            reading = Reading.of(study, together, ~inside)
            for name, one in runs.items():
                left_out[name][inside] = reading.probability([p[inside] for p in one.parts])
                folder = packages / name.replace(" ", "-") / fold.replace(" ", "-")
                ship(a, f"{a.version}-{name}-without-{fold}".replace(" ", "-"), folder, assemble(head, one.gat(fold, train), reading))
        every = np.ones(len(study.tested), bool)
        readings[split] = reading = Reading.of(study, together, every)
        probabilities[split] = left_out["ships"]
        if seeds:
            for seed, parts_of in enumerate(together):
                note(f"gat, seed {seed}", parts_of[0])
                note(f"combined, seed {seed}", combined(parts_of, reading.scales))
            note("combined, mean of seeds", np.mean([combined(r, reading.scales) for r in together], 0))
        probability = reading.probability(runs["ships"].parts)
        report.setdefault("calibration", {})[split] = calibration = {
            "method": "piecewise linear logit of the score, through 0.7 at the false-alert budget",
            "detected_at_0.7": int((study.scored.peaks(probability) >= ALERT_PROBABILITY).sum()),
            "false_alerts_at_0.7": study.scored.false_alerts(probability, ALERT_PROBABILITY),
            "expected_calibration_error": error(probability),
            "expected_calibration_error_left_out": error(left_out["ships"]),
        }
        if seeds:
            calibration["expected_calibration_error_left_out_seeds"] = float(np.mean([error(p) for p in left_out.values()]))
        say(f"calibration, {split}: {calibration}")

    report["losses"] = [study.get(trained(study, EVERYTHING, whole, recipe, seed))[LOSS].tolist() for seed in range(seeds)]
    split = list(splits)[-1]
    kept_head = study.get(linear_head(study, EVERYTHING, whole))
    gat = net(study.get(trained(study, EVERYTHING, whole, recipe, 0)), recipe) if seeds else None
    small = [w.graph for w in study.tested if len(w.graph.node_type) <= EXAMPLE_NODES]
    metrics = {f"{k.replace(' ', '_').replace(',', '')}_{m}": v for k, r in report["rows"].items() for m, v in r.items() if m in ("detected", "roc_auc")}
    recipe_text = json.dumps(asdict(recipe), sort_keys=True) if seeds else "linear head only"
    training = {"data": study.data_digest, "recordings": len(labels), "more_recordings": len(extra), **counts, "seeds": seeds, "recipe": recipe_text}
    manifest = ship(
        a,
        a.version,
        a.package,
        assemble(fitted(kept_head), gat, readings[split]),
        calibration=report["calibration"][split],
        training=training,
        metrics=metrics,
        examples=small[:: max(1, len(small) // EXAMPLES)][:EXAMPLES],
        reference=reference(study.tested, np.nan_to_num(probabilities[split])),
    )
    (a.work / "report.json").write_text(json.dumps(report, indent=1))
    say(f"wrote {a.package} ({manifest[:12]})")
    return 0


def ship(a, version: str, folder: Path, detector: Detector, **more) -> str:
    """Writes a package; those of folds go without what only the one that ships needs."""
    more = {"calibration": {}, "training": {}, "metrics": {}, **more}
    return write(folder, detector, name=f"logster-{a.platform}", version=version, platform=a.platform, **more)


if __name__ == "__main__":
    sys.exit(main())
