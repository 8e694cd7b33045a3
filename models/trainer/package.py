"""Writes a model package: `model.onnx`, `selftest.json` and a `manifest.toml` with their digests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .contract import INPUTS, OUTPUTS, Batch, synthetic, union
from .data import BENIGN, Window
from .export import emit, round_tables
from .net import Detector

#: Version of the feature specification that the Rust code computes (`operators/src/features.rs`).
FEATURE_VERSION = "logster-features-4"
FORMAT = 1
MAX_BYTES = 8 * 1024 * 1024


def session(model: bytes) -> ort.InferenceSession:
    """A session as the product opens it: one intra-op thread, CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def describe(rows) -> list[str]:
    """`name: f32[N,16]` of each tensor."""
    return [f"{n}: {e}[{size}]" if columns is None else f"{n}: {e}[{size},{columns}]" for n, e, columns, size in rows]


def toml_value(value) -> str:
    """A value as TOML; what is written here is flat and plain."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, str)):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(round(value, 6))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    raise TypeError(f"{value!r} has no TOML form here")


def toml_table(name: str, rows: dict) -> str:
    return f"\n[{name}]\n" + "".join(f"{json.dumps(k)} = {toml_value(v)}\n" for k, v in rows.items())


def self_test_graphs() -> list[Batch]:
    """Three random graphs with every awkward size: one node, no edges, many tokens."""
    return [synthetic(1, 24, 40, 60, 60), synthetic(2, 1, 0, 0, 0), synthetic(3, 6, 0, 5, 5)]


def reference(windows: list[Window], probability: np.ndarray) -> dict[str, list[int]]:
    """The benign windows in numbers, for drift: counts by the bins of `operators/src/score/drift.rs`.

    `probability` is that of each window, out of fold.
    """
    benign = [i for i, w in enumerate(windows) if w.label == BENIGN]
    rows = np.array([windows[i].graph.graph_feat[0].numpy() for i in benign], float).reshape(len(benign), 8)

    def counts(values: np.ndarray, bins: int) -> list[int]:
        return np.bincount(np.minimum(values.astype(int), bins - 1), minlength=bins).tolist()

    names = ("nodes", "edges", "events", "processes", "files", "scripts", "network")
    out = {"attack_prob": counts(probability[benign] * 10, 10)}
    out |= {name: counts(rows[:, k] * 8, 21) for k, name in enumerate(names)}
    out["activity"] = counts(rows[:, 7] * 6 + 0.5, 7)
    return out


def write(folder: Path, detector: Detector, *, platform: str, **contents) -> str:
    """Writes the package of a detector; `contents` are those of `store_package`."""
    detector.eval()
    round_tables(detector)
    model = emit(detector, {"feature_version": FEATURE_VERSION, "platform": platform}).SerializeToString()
    return store_package(folder, model, platform=platform, **contents)


def store_package(
    folder: Path,
    model: bytes,
    *,
    name: str,
    version: str,
    platform: str,
    calibration: dict,
    training: dict,
    metrics: dict,
    examples: list[Batch] = (),
    reference: dict | None = None,
) -> str:
    """Writes the package of a model in ONNX and returns the digest of its manifest.

    `examples` are real windows to add to the self-test vector; none holds text, only hashed ids. Without a `reference`
    (see `reference`) the product reports no drift for the package.
    """
    if len(model) > MAX_BYTES:
        raise ValueError(f"the model has {len(model)} bytes, {MAX_BYTES} are allowed")
    batch = union([*self_test_graphs(), *examples])
    got = dict(zip((o[0] for o in OUTPUTS), session(model).run(None, batch.numpy())))

    def plain(array: np.ndarray) -> list:
        return array.reshape(-1).tolist()

    golden = {
        "inputs": {name: plain(array) for name, array in batch.numpy().items()},
        "outputs": {name: plain(array) for name, array in got.items()},
    }
    files = {"model.onnx": model, "selftest.json": json.dumps(golden, separators=(",", ":")).encode()}
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        store(folder / file, data)
    manifest = (
        f"# Written by models/trainer/package.py. Every digest is checked at start-up.\n"
        f"format = {FORMAT}\nname = {json.dumps(name)}\nversion = {json.dumps(version)}\n"
        f"platform = {json.dumps(platform)}\nfeature_version = {json.dumps(FEATURE_VERSION)}\n"
        + toml_table("tensors", {"inputs": describe(INPUTS), "outputs": describe(OUTPUTS)})
        + toml_table("calibration", calibration)
        + toml_table("training", training)
        + toml_table("metrics", metrics)
        + (toml_table("reference", reference) if reference else "")
        + toml_table("files", {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())})
    ).encode()
    store(folder / "manifest.toml", manifest)
    return hashlib.sha256(manifest).hexdigest()


def store(path: Path, data: bytes) -> None:
    """Writes a file that only its owner may change: the product refuses others."""
    path.write_bytes(data)
    os.chmod(path, 0o644)
