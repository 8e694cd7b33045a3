"""Writes the report: one page of Markdown with tables, and plots beside it, from what training and backtest left behind.

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

#: Rows of the table: read-outs of single seeds are given as mean and range.
SEEDED = ("gat", "gat on the corpus alone", "combined", "untyped net")


def figure(path: Path, draw) -> str:
    fig, axis = plt.subplots(figsize=(5, 4))
    draw(axis)
    axis.grid(alpha=0.3)
    fig.tight_layout()
    # No date and no version of the library: the same run gives the same bytes.
    fig.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(fig)
    return path.name


def loss_plot(platform: str, losses: list[list[float]], out: Path) -> list[str]:
    """The training loss of the nets that saw everything, a line for each seed; none where no net ships."""

    def draw(axis):
        for seed, values in enumerate(losses):
            axis.plot(range(1, len(values) + 1), values, label=f"seed {seed}")
        axis.set(xlabel="epoch", ylabel="mean loss", title=f"{platform}: training", yscale="log")
        axis.legend(fontsize="small")

    return [figure(out / f"{platform}-loss.png", draw)] if losses else []


def plots(platform: str, splits: dict, out: Path) -> list[str]:
    """ROC, precision-recall, reliability, and detections against false alerts: a line for each way of leaving out."""
    splits = {name: split for name, split in splits.items() if ", seed" not in name}

    def sweep(split):
        p, y = np.array(split["probability"]), np.array(split["label"])
        order = np.argsort(-p, kind="stable")
        hits, misses = np.cumsum(y[order] == 1), np.cumsum(y[order] == 0)
        return hits / max(hits[-1], 1), misses / max(misses[-1], 1), hits / (hits + misses)

    def roc(axis):
        for name, split in splits.items():
            recall, false, _ = sweep(split)
            axis.plot(false, recall, label=f"{name}, area {split['roc_auc']:.3f}")
        axis.set(xlabel="share of benign windows", ylabel="share of malicious windows", title=f"{platform}: ROC")
        axis.legend(fontsize="small")

    def precision_recall(axis):
        for name, split in splits.items():
            recall, _, precision = sweep(split)
            axis.plot(recall, precision, label=name)
        axis.set(xlabel="recall", ylabel="precision", title=f"{platform}: windows")
        axis.legend(fontsize="small")

    def reliability(axis):
        axis.plot([0, 1], [0, 1], "k:", lw=1)
        for name, split in splits.items():
            p, y = np.array(split["probability"]), np.array(split["label"])
            slot = np.minimum((p * 10).astype(int), 9)
            filled = [k for k in range(10) if (slot == k).any()]
            axis.plot([p[slot == k].mean() for k in filled], [y[slot == k].mean() for k in filled], "o-", label=name)
        axis.set(xlabel="attack_prob", ylabel="share malicious", title=f"{platform}: reliability")
        axis.legend(fontsize="small")

    def alerts(axis):
        for name, split in splits.items():
            axis.step(np.arange(len(split["alerts_curve"])), split["alerts_curve"], where="post", label=name)
        axis.set(xlabel="false alerts on the dev corpus", ylabel="scenarios detected", title=f"{platform}: detections")
        axis.legend(fontsize="small")

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


def product(splits: dict) -> list[str]:
    """What `logster backtest` made of each fold with the package that had not seen it."""
    lines = [
        "| left out | at `attack_prob` 0.7: scenarios, false alerts | ≤ 0/1/2/4 false alerts | window ROC area | calibration error |"
        " threshold from the others for 2: scenarios, false alerts | median time to detect |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, f in splits.items():
        time = "–" if f["median_seconds_to_detect"] is None else f"{f['median_seconds_to_detect']:.0f} s"
        lines.append(
            f"| {name} | {f['detected_at_0.7']} of {f['scenarios']}, {f['false_alerts_at_0.7']} | {'/'.join(map(str, f['curve']))}"
            f" | {f['roc_auc']:.3f} ({f['roc_auc_all']:.3f} all) | {f['expected_calibration_error']:.3f}"
            f" | {f['transfer'][0]}, {f['transfer'][1]} | {time} |"
        )
    return lines + over_seeds(splits)


def over_seeds(splits: dict) -> list[str]:
    """Mean, least and most of the seeds: what ships, and the others."""
    out = []
    for name in splits:
        seeds = [splits[name], *(f for n, f in splits.items() if n.startswith(f"{name}, seed"))]
        if len(seeds) == 1:
            continue

        def spread(values, form="{:.1f}", ends="{}") -> str:
            return f"{form.format(np.mean(values))} ({ends.format(min(values))}–{ends.format(max(values))})"

        curve = " / ".join(spread(c) for c in zip(*(f["curve"] for f in seeds)))
        found, false = ([f[k] for f in seeds] for k in ("detected_at_0.7", "false_alerts_at_0.7"))
        area, error = ([f[k] for f in seeds] for k in ("roc_auc", "expected_calibration_error"))
        times = [f["median_seconds_to_detect"] for f in seeds if f["median_seconds_to_detect"] is not None]
        out.append(
            f"| {name}, mean of {len(seeds)} seeds (least–most) | {spread(found)}, {spread(false)} | {curve}"
            f" | {spread(area, '{:.3f}', '{:.3f}')} | {spread(error, '{:.3f}', '{:.3f}')}"
            f" | {spread([f['transfer'][0] for f in seeds])}, {spread([f['transfer'][1] for f in seeds])} | {np.mean(times):.0f} s |"
        )
    return out


def judged(splits: dict, own: dict) -> list[str]:
    out = ["Through `logster backtest`, each fold with packages that saw nothing of it:", "", *product(splits), ""]
    main = [k for k in splits if "," not in k]
    out += [
        "A threshold that allowed k false alerts on other hosts is passed by k + 1 of as many exchangeable ones, whatever the score"
        " (conformal prediction: Vovk et al., Algorithmic Learning in a Random World, 2005). Chosen to allow 1 there, for the 2 that"
        " this promises: "
        + "; ".join(f"{k} {f['transfer_of_1'][0]} scenarios, {f['transfer_of_1'][1]} false alerts" for k, f in splits.items() if k in main)
        + ".",
        "",
    ]
    for name in main:
        f = splits[name]
        out += [f"Missed at 0.7, {name}: {', '.join(f['missed_at_0.7']) or 'none'}.", ""]
    for name, f in own.items():
        hours, alerts, missed = f["benign_hours"], f["false_alerts_at_0.7"], ", ".join(f["missed_at_0.7"]) or "none"
        found = f" {f['detected_at_0.7']} of {f['attacks']} emulated attacks are detected (missed: {missed})." if f["attacks"] else ""
        out += [
            f"Recordings of our own (`data/README.md`), {name}, each with a package that saw neither it nor an attack like its own:"
            f" {alerts} false alerts in {hours:.1f} benign host-hours of {f['recordings']} recordings, {alerts / hours:.2f} an hour.{found}",
            "",
        ]
    strict = splits[main[-1]]
    ruled = splits.get(f"{main[-1]}, with rules")
    if ruled:
        found, false = ruled["rules_alone"]
        out += [
            f"The example rules of `deploy/rules` alone find {found} of {ruled['scenarios']} at {false} false alerts. Public Sigma rules are in no"
            " package registry, so they were not measured here: name yours with `rules.paths`.",
            "",
        ]
    renamed = splits.get(f"{main[-1]}, scrambled")
    if renamed:
        out += [
            "Under other names of hosts, users, domains, dates and tools (`trainer.scramble`):"
            f" {renamed['detected_at_0.7']} for {strict['detected_at_0.7']} scenarios and {renamed['false_alerts_at_0.7']} for {strict['false_alerts_at_0.7']} false alerts at 0.7,"
            f" area {renamed['roc_auc']:.3f} for {strict['roc_auc']:.3f}.",
            "",
        ]
    out += [f"Recall by technique at 0.7, {main[-1]}: " + ", ".join(f"{t} {a}/{b}" for t, (a, b) in strict["recall"].items()) + ".", ""]
    out += [
        f"Benign windows of attacked recordings score above those of clean ones with probability {strict['benign_attacked_hosts_above_clean']:.2f}"
        " (0.5: alike)." if strict["benign_attacked_hosts_above_clean"] is not None else "No clean recordings to compare attacked hosts' benign windows with.",
        "",
        "Guessing the recording of later benign windows by the scores of earlier ones: right in {:.2f} of cases, {:.2f} by chance.".format(*strict["recording_probe"]),
        "",
        f"{strict['benign_windows']} benign windows, {strict['benign_hours']:.1f} host-hours: no false alert at all would still allow"
        f" 1 in {max(1, round(strict['benign_windows'] / 3))} windows at 95 %.",
        "",
    ]
    return out


def page(platform: str, report: dict, splits: dict, own: dict, images: list[str]) -> list[str]:
    out = [f"## {platform.capitalize()}", "", f"Version {report['version']}; windows {report['windows']}.", ""]
    if splits:
        out += judged(splits, own)
    else:
        out += ["Not judged through `logster backtest` yet: the figures are those of the trainer's own windows.", ""]
    out += ["By the trainer's own windows, all methods on the same folds:", ""]
    out += table(report["rows"])
    out += ["", "A threshold chosen on the other families for 2 false alerts gave (scenarios, false alerts): "]
    out[-1] += "; ".join(f"{n} {tuple(r['transfer'])}" for n, r in report["rows"].items()) + "."
    for name, c in report["calibration"].items():
        out += [
            "",
            f"Calibration, {name} ({c['method']}): {c['detected_at_0.7']} scenarios and {c['false_alerts_at_0.7']} false alerts"
            f" at 0.7; expected calibration error {c['expected_calibration_error']:.3f} where all folds decide the curve,"
            f" {c['expected_calibration_error_left_out']:.3f} where the others do.",
        ]
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
        "model that saw nothing of its family (Windows), of a recording that shares an attack with its own (Linux, type-out), or",
        "of a recording that shares a group of similar attacks (Linux, family-out). The curve at 0.7 was decided on the other folds.",
        "",
    ]
    for platform in ("windows", "linux"):
        folder = a.work / platform
        if not (folder / "report.json").exists():
            continue
        played = folder / "backtest.json"
        seen = json.loads(played.read_text()) if played.exists() else {"splits": {}}
        splits = seen["splits"]
        report = json.loads((folder / "report.json").read_text())
        images = (plots(platform, splits, a.out) if splits else []) + loss_plot(platform, report["losses"], a.out)
        text += page(platform, report, splits, seen.get("own", {}), images)
    (a.out / "README.md").write_text("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
