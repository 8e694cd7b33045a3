//! Model packages in operation: refused, compared.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn logster(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logster"));
    command.current_dir(ROOT).args(args).stdin(Stdio::null());
    command.args(["--set", "http.enabled=false", "--set", "log.level=warn"]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A copy of the shipped packages.
fn packages(to: &Path) -> PathBuf {
    for platform in ["windows", "linux"] {
        std::fs::create_dir_all(to.join(platform)).unwrap();
        for entry in std::fs::read_dir(Path::new(ROOT).join("models/packages").join(platform)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(platform).join(entry.file_name())).unwrap();
        }
    }
    to.to_owned()
}

#[test]
fn packages_are_verified_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let copy = packages(&dir.path().join("packages"));
    let (windows, linux) = (copy.join("windows"), copy.join("linux"));
    let (windows, linux) = (windows.to_str().unwrap(), linux.to_str().unwrap());
    let set = format!("model.packages={}", copy.display());
    let verify = || logster(&["model", "verify", "--set", &set]).output().unwrap();
    assert!(verify().status.success(), "{}", said(&verify()));

    let demo = "deploy/demo/fleet.ndjson.zst";
    let shipped = "models/packages/windows";
    let compare = |b: &str| logster(&["model", "compare", shipped, b, "--input", demo]).output().unwrap();
    let same = compare(windows);
    let text = said(&same);
    assert!(same.status.success(), "{text}");
    for line in ["same verdict        100.00 %", "detections gained   0", "detections lost     0", "greatest 0.0000"] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let other = compare(linux);
    assert_eq!(other.status.code(), Some(2));
    assert!(said(&other).contains("different platforms"), "{}", said(&other));

    let model = copy.join("windows/model.onnx");
    let mut bytes = std::fs::read(&model).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let tampered = verify();
    assert_eq!(tampered.status.code(), Some(1));
    assert!(said(&tampered).contains("it was changed or cut short"), "{}", said(&tampered));
}
