"""Judges the packages through the product: `logster backtest` plays each fold's recordings with the package that
saw nothing of it, and the folds' verdicts are put together.

    python -m trainer.backtest --platform windows --logster BIN --corpus DIR --work DIR

- Input: the packages of the folds that `trainer.train` left in the work folder, one set for what ships and one for each
  other seed, and the corpus.
- Output: `backtest.json` in the work folder: for each way of leaving out, the product's own count of detections
  and false alerts at its threshold, and the figures over all thresholds from the verdicts that it wrote.
- On Linux also with one input alone: the other's records are taken out of the captures.
- The strictest way also with the example rules (`deploy/rules`) beside the model.
- Recordings of one's own (`--own`) are played too, each with the package of the fold that it was dealt to.
- The strictest way also under other names (`trainer.scramble`): what a model knows of the laboratory is no help there.
- A fold is played again only when its package, the program or the labels have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import folds
from .calibrate import ALERT_PROBABILITY
from .data import AMBIGUOUS, BENIGN, MALICIOUS, SNIPPETS, Labels, digest, label_files, load_labels, to_ms
from .evaluate import BUDGETS, Scored, calibration_error, roc_auc
from .scramble import Scramble

ROOT = Path(__file__).resolve().parents[2]
#: What is played: everything, one input alone, everything under other names, everything with rules beside the model, or
#: recordings of one's own.
SCRAMBLED, RULES, OWN = "scrambled", "rules", "own"
ONE_INPUT = {"auditd": re.compile('"topic": ?"linux-auditd'), "ebpf": re.compile('"topic": ?"linux-ebpf')}
#: What a window counts as in which a rule raised a detection: above every probability, as in the product.
RULE_SCORE = 2.0


@dataclass
class Verdict:
    """One window as the product scored it, with its label."""

    recording: str
    host: str
    family: str
    start_ms: int
    end_ms: int
    label: int
    full: bool
    probability: float
    #: A rule of level high or above matched anew.
    raised: bool = False

    @property
    def segment(self) -> str:
        return f"{self.recording}|{self.host}"

    @property
    def snippet(self) -> bool:
        return self.family in SNIPPETS


def unpacked(path: Path):
    """Lines of a capture."""
    with subprocess.Popen(["zstd", "-dc", "--long=27", str(path)], stdout=subprocess.PIPE, text=True) as lines:
        yield from lines.stdout


def recordings_in(folder: Path) -> tuple[dict[str, dict], dict[str, Path]]:
    """What labels.json says of each recording, and the folder that holds it: the one given, or one in it."""
    raw, places = {}, {}
    for found in label_files(folder):
        for record in json.loads(found.read_text()):
            raw[record["id"]], places[record["id"]] = record, found.parent
    return raw, places


def play(logster: Path, places: dict[str, Path], raw: dict[str, dict], recordings: list[str], package: Path, platform: str, view: str) -> dict:
    """The product's report on the recordings, its verdicts, and the labels that they go by."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        captures, packages = root / "captures", root / "packages"
        captures.mkdir()
        labels = []
        shutil.copytree(package, packages / platform)
        # The product wants a package of each platform, whatever it is to play.
        other = {"windows": "linux", "linux": "windows"}[platform]
        shutil.copytree(ROOT / "models" / "packages" / other, packages / other)
        for recording in recordings:
            name = f"{recording}.ndjson.zst"
            source = places[recording] / name
            if view in ("all", RULES, OWN):
                (captures / name).symlink_to(source.resolve())
                labels.append(raw[recording])
                continue
            with (captures / f"{recording}.ndjson").open("w") as out:
                if view == SCRAMBLED:
                    scramble = Scramble(raw[recording], unpacked(source))
                    out.writelines(map(scramble.text, unpacked(source)))
                    labels.append(scramble.label(raw[recording]))
                else:
                    out.writelines(line for line in unpacked(source) if ONE_INPUT[view].search(line, 0, 80))
                    labels.append(raw[recording])
        (captures / "labels.json").write_text(json.dumps(labels))
        command = [logster, "backtest", "--input", captures, "--report", root / "report.json", "--out", root / "out"]
        command += ["--set", f"model.packages={packages}"]
        if view == RULES:
            command += ["--set", "rules.paths=deploy/rules"]
        # From the root of the repository, where the product finds ONNX Runtime.
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
        report = json.loads((root / "report.json").read_text())
        verdicts = []
        with (root / "out" / "logster-inference-results.ndjson").open() as results:
            for line in results:
                r = json.loads(line)
                r = r.get("value", r)
                raised = any(m.get("new", 0) > 0 and m["level"] in ("high", "critical") for m in r.get("rules", ()))
                verdicts.append([r["tenant_id"], r["endpoint_id"], to_ms(r["window_start"]), to_ms(r["window_end"]), r["attack_prob"], raised])
    return {"rows": report["scenarios"], "verdicts": verdicts, "labels": labels if view == SCRAMBLED else None}


def judged(labels: dict[str, Labels], verdicts: list[list]) -> list[Verdict]:
    out = []
    for recording, host, start, end, probability, raised in verdicts:
        known = labels[recording]
        label = known.of_window(host, start, end)
        full = known.start <= start and end <= known.end
        out.append(Verdict(recording, host, known.family, start, end, label, full, probability, raised))
    return out


def recording_probe(verdicts: list[Verdict]) -> tuple[float, float]:
    """Accuracy of guessing the recording of later benign windows by the scores of earlier ones, and of pure chance."""
    benign = defaultdict(list)
    for v in sorted(verdicts, key=lambda v: (v.segment, v.end_ms)):
        if v.label == BENIGN:
            benign[v.recording].append(np.log(v.probability + 1e-9) - np.log(1 - v.probability + 1e-9))
    # A gap of one window's width between the halves: windows that overlap say nearly the same.
    halves = {r: (s[: len(s) // 2 - 2], s[len(s) // 2 + 4 :]) for r, s in benign.items() if len(s) >= 12}
    if len(halves) < 2:
        return float("nan"), float("nan")
    centers = {r: np.mean(first) for r, (first, _) in halves.items()}
    guesses = [min(centers, key=lambda r: abs(centers[r] - x)) == r for r, (_, later) in halves.items() for x in later]
    return float(np.mean(guesses)), 1 / len(halves)


def figures(platform: str, labels: dict[str, Labels], rows: list[dict], verdicts: list[Verdict]) -> dict:
    scored = Scored(verdicts)
    p = np.array([v.probability for v in verdicts])
    counts = np.where([v.raised for v in verdicts], RULE_SCORE, p)
    label = np.array([v.label for v in verdicts])
    kept = np.array([v.label != AMBIGUOUS and not v.snippet for v in verdicts])
    counted = np.array([v.full if platform == "linux" else not v.snippet for v in verdicts])
    attacked = [r for r in rows if r["detected"] is not None]
    seconds = sorted(r["seconds_to_detect"] for r in attacked if r["seconds_to_detect"] is not None)
    recall = defaultdict(lambda: [0, 0])
    for r in attacked:
        for technique in labels[r["id"]].techniques:
            recall[technique][0] += r["detected"]
            recall[technique][1] += 1
    clean = {r for r, l in labels.items() if not any(l.attack.values())}
    benign = label == BENIGN
    hit = np.array([v.recording not in clean for v in verdicts])
    return {
        "scenarios": len(attacked),
        "detected_at_0.7": sum(r["detected"] for r in attacked),
        "false_alerts_at_0.7": sum(r["false_alerts"] for r in rows),
        "missed_at_0.7": sorted(r["id"] for r in attacked if not r["detected"]),
        "median_seconds_to_detect": float(np.median(seconds)) if seconds else None,
        "curve": scored.curve(counts),
        "budgets": list(BUDGETS),
        "rules_alone": [int((scored.peaks(counts) >= RULE_SCORE).sum()), scored.false_alerts(counts, RULE_SCORE)],
        "transfer": list(scored.transfer(p, 2)),
        "transfer_of_1": list(scored.transfer(p, 1)),
        "roc_auc": roc_auc(p[(label == MALICIOUS) & counted], p[(label == BENIGN) & counted]),
        "roc_auc_all": roc_auc(p[label == MALICIOUS], p[label == BENIGN]),
        "expected_calibration_error": calibration_error(p[kept], label[kept].astype(float), np.ones(kept.sum())),
        "benign_windows": int(benign.sum()),
        "benign_95th": float(np.quantile(p[benign], 0.95)) if benign.any() else None,
        "benign_attacked_hosts_above_clean": roc_auc(p[benign & hit], p[benign & ~hit]) if clean else None,
        "recording_probe": recording_probe(verdicts),
        "benign_hours": sum(r["benign_endpoint_hours"] for r in rows),
        "recall": {k: v for k, v in sorted(recall.items())},
        "probability": [round(float(x), 6) for x in p[kept]],
        "label": label[kept].tolist(),
        "alerts_curve": [scored.curve(p, (k,))[0] for k in range(11)],
    }


def own_figures(rows: list[dict]) -> dict:
    """What the product raised on recordings of one's own at its threshold."""
    attacked = [r for r in rows if r["detected"] is not None]
    return {
        "recordings": len(rows),
        "benign_hours": sum(r["benign_endpoint_hours"] for r in rows),
        "false_alerts_at_0.7": sum(r["false_alerts"] for r in rows),
        "raised_on": sorted(r["id"] for r in rows if r["false_alerts"]),
        "attacks": len(attacked),
        "detected_at_0.7": sum(r["detected"] for r in attacked),
        "missed_at_0.7": sorted(r["id"] for r in attacked if not r["detected"]),
    }


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--platform", choices=("windows", "linux"), required=True)
    p.add_argument("--logster", type=lambda path: Path(path).resolve(), required=True)
    p.add_argument("--corpus", type=Path, required=True, help="folder with labels.json and the captures")
    p.add_argument("--work", type=Path, required=True, help="folder that `trainer.train` worked in")
    p.add_argument("--own", type=Path, help="folder of the recordings of one's own that `trainer.train` was given")
    p.add_argument("--jobs", type=int, default=1, help="plays at a time")
    a = p.parse_args()
    labels = load_labels(a.corpus / "labels.json")
    raw, places = recordings_in(a.corpus)
    own, own_places = recordings_in(a.own) if a.own else ({}, {})
    raw, places = raw | own, places | own_places
    program = digest(a.logster) + digest(a.corpus / "labels.json") + rules_digest()
    report: dict = {"platform": a.platform, "splits": {}}
    own_labels = {r: Labels(record) for r, record in own.items()}
    splits = {k: folds.with_own(parts, labels, own_labels) for k, parts in folds.splits(a.platform, labels).items()}

    def played(split: str, variant: str, view: str, fold: str, test: list[str]) -> dict:
        test = [r for r in test if (r in own) == (view == OWN)]
        if not test:
            return {"rows": [], "verdicts": [], "labels": None}
        package = a.work / "packages" / split / variant / fold.replace(" ", "-")
        key = hashlib.sha256((program + digest(package / "manifest.toml") + view + json.dumps(test)).encode()).hexdigest()
        kept = a.work / f"backtest-{key[:16]}.json"
        if not kept.exists():
            got = play(a.logster, places, raw, test, package, a.platform, view)
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(got))
            partial.rename(kept)
        return json.loads(kept.read_text())

    for split, parts in splits.items():
        rows_wanted = [("ships", view) for view in ("all", *(ONE_INPUT if a.platform == "linux" else ()))]
        if split == list(splits)[-1]:
            rows_wanted += [("ships", RULES), ("ships", SCRAMBLED)]
        if own:
            rows_wanted.append(("ships", OWN))
        seeds = sorted(f.name for f in (a.work / "packages" / split).iterdir() if f.name.startswith("seed-"))
        rows_wanted += [(seed, "all") for seed in seeds]
        for variant, view in rows_wanted:
            rows, verdicts = [], []
            with ThreadPoolExecutor(a.jobs) as pool:
                results = list(pool.map(lambda part: played(split, variant, view, part[0], part[1]), parts))
            if view == OWN:
                report.setdefault("own", {})[split] = f = own_figures([row for got in results for row in got["rows"]])
                print(f"{a.platform}, {split}, own recordings: {f}", flush=True)
                continue
            for got in results:
                rows += got["rows"]
                known = {l["id"]: Labels(l) for l in got["labels"]} if got.get("labels") else labels
                verdicts += judged(known, got["verdicts"])
            name = split if variant == "ships" else f"{split}, {variant.replace('-', ' ')}"
            name += {"all": "", SCRAMBLED: ", scrambled", RULES: ", with rules"}.get(view, f", {view} alone")
            report["splits"][name] = f = figures(a.platform, labels, rows, verdicts)
            print(
                f"{a.platform}, {name}: {f['detected_at_0.7']} of {f['scenarios']} at 0.7 with {f['false_alerts_at_0.7']} false alerts;"
                f" {f['curve']} at {f['budgets']}; area {f['roc_auc']:.3f}; calibration error {f['expected_calibration_error']:.3f};"
                f" transfer {f['transfer']}; median {f['median_seconds_to_detect']} s",
                flush=True,
            )
    (a.work / "backtest.json").write_text(json.dumps(report, indent=1))
    return 0


def rules_digest() -> str:
    return "".join(digest(path) for path in sorted((ROOT / "deploy" / "rules").rglob("*.yml")))


if __name__ == "__main__":
    sys.exit(main())
