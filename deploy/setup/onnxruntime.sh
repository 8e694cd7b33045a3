#!/usr/bin/env bash
# Puts ONNX Runtime's shared library at .tools/onnxruntime/libonnxruntime.so.1.31.1.
# It comes from the PyPI wheel, which pip checks against onnxruntime/requirements.txt; we check the library again.
source "$(dirname "$0")/common.sh"

version=1.31.1
case $(uname -m) in
    x86_64) sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3 ;;
    aarch64) sha256=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467 ;;
    *) die "no ONNX Runtime build is pinned for $(uname -m)" ;;
esac
name=libonnxruntime.so.$version
library=$tools/onnxruntime/$name

matches() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

! matches "$library" || exit 0

note "fetching onnxruntime $version"
scratch_dir
# Platform and Python are forced: whatever runs this script, the same file is fetched.
retry python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes \
    --implementation cp --python-version 3.11 --abi cp311 --platform "manylinux_2_28_$(uname -m)" \
    --dest "$scratch" --requirement "$here/onnxruntime/requirements.txt" || die "could not download onnxruntime $version"

python3 - "$scratch"/onnxruntime-*.whl "onnxruntime/capi/$name" "$scratch/$name" <<'PY'
import shutil, sys, zipfile

wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as out:
    shutil.copyfileobj(source, out)
PY
matches "$scratch/$name" || die "$name is not the file we pinned"

mkdir -p "$tools/onnxruntime"
chmod 644 "$scratch/$name"
mv "$scratch/$name" "$library"
