#!/usr/bin/env bash
# Parses what lies in deploy/ for supervisors, with whatever tools are there: systemd-analyze, PyYAML.
set -euo pipefail
cd "$(dirname "$0")"

if command -v systemd-analyze >/dev/null; then
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    # It wants the programs to exist.
    for unit in systemd/*.service; do
        sed 's,/usr/bin/logster,/bin/true,' "$unit" >"$copy/${unit##*/}"
    done
    # verify exits with 0 on an unknown setting; what it says is the result.
    said=$(systemd-analyze verify --man=no "$copy"/logster@.service 2>&1 | grep -F "$copy" || true)
    [ -z "$said" ] || { echo "$said" >&2; exit 1; }
else
    echo "note: no systemd-analyze, units not checked" >&2
fi

if python3 -c 'import yaml' 2>/dev/null; then
    python3 - kubernetes/*.yaml <<'PY'
import sys, yaml

for path in sys.argv[1:]:
    objects = [o for o in yaml.safe_load_all(open(path)) if o]
    config = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    for o in (o for o in objects if o["kind"] == "StatefulSet"):
        spec, pod = o["spec"], o["spec"]["template"]["spec"]
        container = pod["containers"][0]
        processes = f"--processes={spec['replicas']}"
        hosts = config[o["metadata"]["name"]]["hosts.txt"].split()
        mounts = {m["name"] for m in container["volumeMounts"]}
        security = container["securityContext"]
        for what, holds in {
            "replicas, --processes and hosts.txt agree": processes in container["args"] and len(hosts) == spec["replicas"],
            "the selector finds the pods": spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"],
            "volumes and mounts agree": mounts == {v["name"] for v in pod["volumes"]},
            "not root": pod["securityContext"]["runAsNonRoot"] and not security["allowPrivilegeEscalation"],
            "read-only root": security["readOnlyRootFilesystem"],
        }.items():
            if not holds:
                sys.exit(f"{path}: {o['metadata']['name']}: not so: {what}")
    if any(o["kind"] == "Secret" for o in objects):
        sys.exit(f"{path}: a secret does not belong in a file under version control")
PY
else
    echo "note: no PyYAML, Kubernetes files not checked" >&2
fi
