"""Writes the report: one page of Markdown with tables, and plots beside it, from what training left behind.

    python -m trainer.report --work DIR --out DIR
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .evaluate import roc_auc  # noqa: E402

#: Rows of the table: read-outs of single seeds are given as mean and range.
SEEDED = ("gat", "combined")


def figure(path: Path, draw) -> str:
    fig, axis = plt.subplots(figsize=(5, 4))
    draw(axis)
    axis.grid(alpha=0.3)
    fig.tight_layout()
    # No date and no version of the library: the same run gives the same bytes.
    fig.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(fig)
    return path.name


def plots(platform: str, scores: dict, out: Path) -> list[str]:
    """ROC, precision-recall, reliability, and detections against false alerts; each with the linear head beside."""
    label, weight = scores["label"], scores["weight"]
    use = label >= 0
    y = label[use]

    def sweep(score):
        order = np.argsort(-score[use], kind="stable")
        hits, misses = np.cumsum(y[order] == 1), np.cumsum(y[order] == 0)
        return hits / max(hits[-1], 1), misses / max(misses[-1], 1), hits / (hits + misses)

    def roc(axis):
        for name, score in (("model", scores["probability"]), ("linear head", scores["linear"])):
            recall, false, _ = sweep(score)
            area = roc_auc(score[label == 1], score[label == 0])
            axis.plot(false, recall, label=f"{name}, area {area:.3f}")
        axis.set(xlabel="share of benign windows", ylabel="share of malicious windows", title=f"{platform}: ROC, out of fold")
        axis.legend()

    def precision_recall(axis):
        for name, score in (("model", scores["probability"]), ("linear head", scores["linear"])):
            recall, _, precision = sweep(score)
            axis.plot(recall, precision, label=name)
        axis.set(xlabel="recall", ylabel="precision", title=f"{platform}: windows, out of fold")
        axis.legend()

    def reliability(axis):
        p, w = scores["probability"][use], weight[use]
        slot = np.minimum((p * 10).astype(int), 9)
        filled = [k for k in range(10) if w[slot == k].sum() > 0]
        said = [np.average(p[slot == k], weights=w[slot == k]) for k in filled]
        seen = [np.average(y[slot == k], weights=w[slot == k]) for k in filled]
        axis.plot([0, 1], [0, 1], "k:", lw=1)
        axis.plot(said, seen, "o-")
        axis.set(xlabel="attack_prob", ylabel="share malicious", title=f"{platform}: reliability, out of fold")

    def alerts(axis):
        k = np.arange(len(scores["curve"]))
        axis.step(k, scores["curve"], where="post", label="model, first seed")
        axis.step(k, scores["linear_curve"], where="post", label="linear head")
        axis.set(xlabel="false alerts on the dev corpus", ylabel="scenarios detected", title=f"{platform}: out of fold")
        axis.legend()

    drawn = {"roc": roc, "precision-recall": precision_recall, "reliability": reliability, "alerts": alerts}
    return [figure(out / f"{platform}-{name}.png", draw) for name, draw in drawn.items()]


def table(rows: dict) -> list[str]:
    budgets = next(iter(rows.values()))["budgets"]
    lines = [f"| method | scenarios detected at ≤ {'/'.join(map(str, budgets))} false alerts | window ROC area |", "|---|---|---|"]
    groups = defaultdict(list)
    for name, r in rows.items():
        start = name.split(",")[0]
        groups[start if start in SEEDED and "seed " in name else name].append(r)
    for name, rs in groups.items():
        found = np.array([r["detected"] for r in rs])
        area = np.array([r["roc_auc"] for r in rs])
        if len(rs) == 1:
            cells = "/".join(map(str, found[0])), f"{area[0]:.3f}"
        else:
            name = f"{name}, {len(rs)} seeds: mean (least to most)"
            cells = " / ".join(f"{c.mean():.1f} ({c.min()}–{c.max()})" for c in found.T), f"{area.mean():.3f} ({area.min():.3f}–{area.max():.3f})"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def page(platform: str, report: dict, images: list[str]) -> list[str]:
    c, s = report["calibration"], report["scenarios"]
    found = [x for x in s if x["seconds_to_detect"] is not None]
    out = [f"## {platform.capitalize()}", "", f"Version {report['version']}; windows {report['windows']}.", ""]
    out += table(report["rows"])
    transfer = {n: r["transfer_2"] for n, r in report["rows"].items() if "transfer_2" in r}
    if transfer:
        out += ["", "A threshold chosen on the other families for 2 false alerts gave (scenarios, false alerts): "]
        out[-1] += "; ".join(f"{n} {tuple(v)}" for n, v in transfer.items() if "seed" not in n or "mean" in n) + "."
    out += ["", f"Mix of worst process, pooled read-out and linear head: {report['mix']}. Calibration: {c['method']}."]
    out += [
        f"At `attack_prob` 0.7, mean over seeds: {c['detected_at_0.7']:.1f} of {len(s)} scenarios and {c['false_alerts_at_0.7']:.1f} false alerts;"
        f" expected calibration error {c['expected_calibration_error']:.3f}."
    ]
    if found:
        seconds = np.median([x["seconds_to_detect"] for x in found])
        out += [f"Median time from the attack's start to the end of the first window at 0.7, first seed: {seconds:.0f} s.", ""]
    techniques = defaultdict(lambda: [0, 0])
    for x in s:
        for t in x["techniques"]:
            techniques[t][0] += x["seconds_to_detect"] is not None
            techniques[t][1] += 1
    missed = [x["id"] for x in s if x["seconds_to_detect"] is None]
    out += [f"Missed at 0.7 by the first seed: {', '.join(missed) or 'none'}.", "", "Recall by technique, first seed at 0.7: "]
    out[-1] += ", ".join(f"{t} {a}/{b}" for t, (a, b) in sorted(techniques.items())) + "."
    return out + [""] + [f"![{i}]({i})" for i in images] + [""]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    text = [
        "# What the models reach",
        "",
        "Written by `models/trainer/report.py`; `make train` makes it anew. Every figure is out of fold: a window is scored by a",
        "model that saw nothing of its family (Windows) or of a recording that shares an attack with its own (Linux). The choice",
        "of mix and calibration saw the same out-of-fold scores, which makes them a little optimistic.",
        "",
    ]
    for platform in ("windows", "linux"):
        folder = a.work / platform
        if not (folder / "report.json").exists():
            continue
        with np.load(folder / "scores.npz") as scores:
            images = plots(platform, dict(scores), a.out)
        text += page(platform, json.loads((folder / "report.json").read_text()), images)
    (a.out / "README.md").write_text("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
