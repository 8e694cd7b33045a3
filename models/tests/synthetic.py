"""A small labelled corpus with a planted signal, as `logster export-windows` would write it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.contract import EDGE_FEATURES, GRAPH_FEATURES, NODE_FEATURES

START = 1_600_000_000_000
#: The flag that malicious processes carry, and one that says nothing.
BAD_FLAG, PLAIN_FLAG = 77, 78


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat().replace("+00:00", "Z")


def write(
    folder: Path, recordings: int = 6, windows: int = 20, linux: bool = False, name: str = "r", view: str = "all"
) -> tuple[Path, Path]:
    """Recordings `r0`, `r1`, ... (of that `name`); windows 5 to 9 of every other one hold an attack. Returns Arrow file and labels."""
    r = np.random.default_rng(5)
    rows, labels = [], []
    for k in range(recordings):
        attacked = k % 2 == 0
        span = (START, START + windows * 30_000 + 180_000)
        attack = (START + 5 * 30_000 + 180_000, START + 9 * 30_000 + 180_000)
        guid = f"{{0000000{k}-0000-0000-0000-000000000001}}"
        host = {"host": "h", "attack_intervals": [[iso(t) for t in attack]] if attacked else []}
        if not linux:
            host["malicious_process_guids"] = [guid.upper()] if attacked else []
        labels.append(
            {
                "id": f"{name}{k}",
                "family": f"f{k % 3}",
                "attacks": [f"a{k}"] if attacked else [],
                "start": iso(span[0]),
                "end": iso(span[1]),
                "hosts": [host],
                "benign_intervals": [
                    {"host": "h", "kind": "pre_attack", "interval": [iso(span[0]), iso(attack[0] if attacked else span[1])]}
                ],
            }
        )
        for w in range(windows):
            start = START + w * 30_000
            bad = attacked and attack[0] < start + 180_000 and attack[1] >= start
            n = int(r.integers(3, 9))
            kinds = np.append(np.zeros(n, int), 1)
            trees = [(PLAIN_FLAG, i) for i in range(n)] + ([(BAD_FLAG, 0)] if bad else [])
            edges = [(0, i, 0) for i in range(1, n)] + [(0, n, 1)]
            rows.append(
                {
                    "recording": f"{name}{k}",
                    "endpoint": "h",
                    "platform": "linux" if linux else "windows",
                    "view": view,
                    "window_start": start,
                    "window_end": start + 180_000,
                    "backfill": False,
                    "events": int(r.integers(10, 99)),
                    "node_key": [("p" if linux else "{") + f"0000000{k}-0000-0000-0000-00000000000{i + 1}}}" if kinds[i] == 0 else "" for i in range(n + 1)],
                    "node_first_ms": [start] * (n + 1),
                    "node_last_ms": [start + 179_000] * (n + 1),
                    "node_type": kinds.tolist(),
                    "node_feat": r.random((n + 1) * NODE_FEATURES).tolist(),
                    "tok_id": [int(t) for t in r.integers(0, 500, n)],
                    "tok_node": list(range(n)),
                    "tree_id": [t for t, _ in trees],
                    "tree_node": [i for _, i in trees],
                    "edge_src": [e[0] for e in edges],
                    "edge_dst": [e[1] for e in edges],
                    "edge_type": [e[2] for e in edges],
                    "edge_feat": r.random(len(edges) * EDGE_FEATURES).tolist(),
                    "graph_feat": r.random(GRAPH_FEATURES).tolist(),
                }
            )
    floats, numbers = pa.list_(pa.float32()), {"node_type": pa.uint8(), "edge_type": pa.uint8(), "tok_id": pa.uint16(), "tree_id": pa.uint16()}
    schema = []
    for name, value in rows[0].items():
        if name.endswith("_feat"):
            schema.append((name, floats))
        elif name in numbers or name in ("tok_node", "tree_node", "edge_src", "edge_dst"):
            schema.append((name, pa.list_(numbers.get(name, pa.uint32()))))
        elif name == "node_key":
            schema.append((name, pa.list_(pa.string())))
        elif name.endswith("_ms"):
            schema.append((name, pa.list_(pa.int64())))
        else:
            schema.append((name, pa.array([value]).type))
    table = pa.Table.from_pylist(rows, pa.schema(schema))
    arrow = folder / "windows.arrow"
    with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    (folder / "labels.json").write_text(json.dumps(labels))
    return arrow, folder / "labels.json"
