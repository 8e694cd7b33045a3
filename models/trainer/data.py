"""Windows exported by `logster export-windows`, joined with a corpus' labels.

The Arrow file has one row per window: who and when, the graph's columns of the tensor contract, and for
each node its identity and its first and last time. Labels live beside the recordings (`labels.json`) and
meet the windows only here.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from .contract import EDGE_FEATURES, GRAPH_FEATURES, NODE_FEATURES, Batch

MALICIOUS, BENIGN, AMBIGUOUS = 1, 0, -1
#: Node labels: unknown nodes take part in no node loss.
NODE_UNKNOWN = -1
#: Recordings of snippets without background: recall only.
SNIPPETS = ("evtx-attack-samples", "deepbluecli")
#: Benign intervals of one host are joined over gaps up to this (a label's resolution).
TOLERANCE_MS = 1000


@dataclass
class Window:
    """One window with its graph and labels."""

    recording: str
    host: str
    family: str
    view: str
    start_ms: int
    end_ms: int
    events: int
    #: MALICIOUS, BENIGN or AMBIGUOUS.
    label: int
    #: The window reaches beyond neither end of the recording.
    full: bool
    graph: Batch
    #: 1 malicious, 0 not, NODE_UNKNOWN; one a node.
    node_label: np.ndarray
    #: Identity of each process within its recording, 0 for other nodes.
    node_id: np.ndarray
    #: Of a recording of one's own, not of the corpus.
    own: bool = False

    @property
    def segment(self) -> str:
        return f"{self.recording}|{self.host}"

    @property
    def snippet(self) -> bool:
        return self.family in SNIPPETS


def to_ms(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def joined(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted intervals, those that touch within the tolerance made one."""
    out: list[list[int]] = []
    for a, b in sorted(intervals):
        if out and a <= out[-1][1] + TOLERANCE_MS:
            out[-1][1] = max(out[-1][1], b)
        else:
            out.append([a, b])
    return [(a, b) for a, b in out]


class Labels:
    """What labels.json says of one recording."""

    def __init__(self, record: dict):
        self.family = record["family"]
        self.attacks = tuple(record.get("attacks") or ())
        self.techniques = tuple(record.get("techniques") or ())
        self.start, self.end = to_ms(record["start"]), to_ms(record["end"])
        self.attack = defaultdict(list)
        self.malicious, self.doubtful = set(), set()
        for h in record["hosts"]:
            self.attack[h["host"].lower()] += [tuple(map(to_ms, i)) for i in h["attack_intervals"]]
            self.malicious |= {g.lower() for g in h.get("malicious_process_guids", ())}
            for name in ("injected_process_guids", "attacker_shell_guids"):
                self.doubtful |= {g.lower() for g in h.get(name, ())}
        per_host = defaultdict(list)
        for b in record["benign_intervals"]:
            per_host[b["host"].lower()].append(tuple(map(to_ms, b["interval"])))
        self.benign = {h: joined(v) for h, v in per_host.items()}

    def of_window(self, host: str, start: int, end: int) -> int:
        """Label of `[start, end)`: malicious if it overlaps an attack, benign if wholly benign.

        Time outside the recording has no events: windows are clipped to it.
        """
        if any(a < end and b >= start for a, b in self.attack.get(host, ())):
            return MALICIOUS
        start, end = max(start, self.start), min(end, self.end)
        benign = any(a - TOLERANCE_MS <= start and end <= b + TOLERANCE_MS for a, b in self.benign.get(host, ()))
        return BENIGN if benign else AMBIGUOUS

    def of_nodes(self, label: int, host: str, node_type, keys, first, last) -> np.ndarray:
        """Node labels of a window; `first` and `last` are absolute times."""
        n = len(node_type)
        if label == BENIGN:
            return np.zeros(n, np.int8)
        out = np.full(n, NODE_UNKNOWN, np.int8)
        if label == AMBIGUOUS:
            return out
        if self.malicious:
            for i in range(n):
                if node_type[i] == 0 and keys[i]:
                    out[i] = 1 if keys[i] in self.malicious else NODE_UNKNOWN if keys[i] in self.doubtful else 0
        elif not any(k.startswith("{") for k in keys):
            # No GUIDs (Linux): what ran during the attack is suspect, what did not is not.
            for i in range(n):
                if node_type[i] == 0:
                    out[i] = any(a <= last[i] and b >= first[i] for a, b in self.attack.get(host, ()))
        return out


def load_labels(path: Path) -> dict[str, Labels]:
    return {r["id"]: Labels(r) for r in json.loads(path.read_text())}


def digest(path: Path) -> str:
    """SHA-256 of a file, for the manifest."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def column(row_table: pa.RecordBatch, name: str, dtype, width: int = 0) -> list[torch.Tensor]:
    """A list column as one tensor a row."""
    array = row_table.column(name)
    flat = torch.from_numpy(array.values.to_numpy(zero_copy_only=False).astype(dtype))
    offsets = array.offsets.to_numpy()
    parts = [flat[a:b] for a, b in zip(offsets[:-1], offsets[1:])]
    return [p.view(-1, width) for p in parts] if width else parts


def read(path: Path, labels: dict[str, Labels]) -> list[Window]:
    """All windows of the file whose recording has labels, in the file's order."""
    windows = []
    ids: dict[tuple[str, str], int] = {}
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            rows = reader.get_batch(i)
            wide = {
                "node_feat": NODE_FEATURES,
                "edge_feat": EDGE_FEATURES,
                "graph_feat": GRAPH_FEATURES,
            }
            cols = {}
            for name in Batch._fields:
                if name != "node_graph":
                    cols[name] = column(rows, name, np.float32 if name in wide else np.int64, wide.get(name, 0))
            first, last = column(rows, "node_first_ms", np.int64), column(rows, "node_last_ms", np.int64)
            plain = {n: rows.column(n).to_pylist() for n in ("recording", "endpoint", "view", "window_start", "window_end", "events", "node_key")}
            for k in range(rows.num_rows):
                recording, host = plain["recording"][k], plain["endpoint"][k]
                if recording not in labels:
                    continue
                known = labels[recording]
                start, end = plain["window_start"][k], plain["window_end"][k]
                label = known.of_window(host, start, end)
                node_type = cols["node_type"][k]
                keys = [(key or "").lower() for key in plain["node_key"][k]]
                graph = Batch(
                    **{n: cols[n][k] for n in cols}, node_graph=torch.zeros(len(node_type), dtype=torch.int64)
                )
                windows.append(
                    Window(
                        recording=recording,
                        host=host,
                        family=known.family,
                        view=plain["view"][k],
                        start_ms=start,
                        end_ms=end,
                        events=plain["events"][k],
                        label=label,
                        full=known.start <= start and end <= known.end,
                        graph=graph,
                        node_label=known.of_nodes(label, host, node_type.numpy(), keys, first[k].numpy(), last[k].numpy()),
                        node_id=np.array([ids.setdefault((recording, key), len(ids) + 1) if key else 0 for key in keys]),
                    )
                )
    return windows


def read_feedback(folder: Path, platform: str) -> list[Window]:
    """Windows that analysts decided on (`logster export-feedback`): they train and are never tested (view `feedback`)."""
    path = folder / f"{platform}.arrow"
    return read(path, load_labels(folder / "labels.json")) if path.exists() else []


def label_files(folder: Path) -> list[Path]:
    """The labels.json of recordings: in the folder, and one folder down."""
    return sorted([*folder.glob("labels.json"), *folder.glob("*/labels.json")])


def read_own(path: Path, folder: Path) -> tuple[list[Window], dict[str, Labels]]:
    """Recordings of one's own, exported like the corpus, and their labels; `folder` holds them beside a labels.json, or
    folders that do."""
    labels = {}
    for found in label_files(folder):
        labels |= load_labels(found)
    return [replace(w, own=True) for w in read(path, labels) if w.label != AMBIGUOUS], labels
