//! From an analyst's verdict to windows that the trainer reads: run, alert, transition, export.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use arrow_array::cast::AsArray;
use logster_schema::{Alert, AlertStatus, AlertTransition, InputTopic, OutputTopic};
use serde_json::{Value, json};

use crate::outputs::Outputs;
use crate::process::{logster, succeed};

/// The last revision of each alert.
fn alerts(outputs: &Path) -> BTreeMap<String, Alert> {
    let outputs = Outputs::of_files(&[outputs]);
    let records = outputs.keys(OutputTopic::Alerts).flat_map(|(_, records)| records);
    let alerts = records.map(|text| serde_json::from_str(text).unwrap());
    alerts.map(|alert: Alert| (alert.alert_id.clone(), alert)).collect()
}

#[test]
fn verdicts_become_labelled_windows() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let input = dir.path().join("in");
    std::fs::create_dir(&input).unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/fleet.ndjson.zst");
    std::fs::copy(demo, input.join("fleet.ndjson.zst")).unwrap();
    succeed(logster(&["run", "--input", &path("in"), "--out", &path("before")]));
    let raised = alerts(&dir.path().join("before"));
    assert!(raised.len() >= 2, "the demo raises several alerts");

    // An analyst calls the first one false and the others true.
    let verdict = |first: bool| if first { AlertStatus::FalsePositive } else { AlertStatus::Resolved };
    let end = raised.values().map(|a| a.updated_at).max().unwrap();
    let lines: String = raised
        .values()
        .enumerate()
        .map(|(n, alert)| {
            let transition = AlertTransition {
                alert_id: alert.alert_id.clone(),
                tenant_id: alert.tenant_id.clone(),
                endpoint_id: alert.endpoint_id.clone(),
                to: verdict(n == 0),
                actor: "ann".to_owned(),
                note: "seen before".to_owned(),
            };
            format!("{}\n", json!({"topic": InputTopic::Transitions.name(), "ts": end + 60_000, "value": transition}))
        })
        .collect();
    std::fs::write(input.join("verdicts.ndjson"), lines).unwrap();
    succeed(logster(&["run", "--input", &path("in"), "--out", &path("after")]));
    let decided = alerts(&dir.path().join("after"));
    assert!(decided.values().enumerate().all(|(n, a)| a.status == verdict(n == 0)), "{decided:?}");

    succeed(logster(&[
        "export-feedback",
        "--input",
        &path("in"),
        "--outputs",
        &path("after"),
        "--out",
        &path("feedback"),
    ]));
    let feedback = dir.path().join("feedback");
    let labels: Vec<Value> = serde_json::from_slice(&std::fs::read(feedback.join("labels.json")).unwrap()).unwrap();
    assert_eq!(labels.len(), decided.len());
    let mut windows: BTreeMap<String, u64> = BTreeMap::new();
    for entry in std::fs::read_dir(&feedback).unwrap().map(|e| e.unwrap().path()) {
        if entry.extension().is_none_or(|e| e != "arrow") {
            continue;
        }
        for rows in arrow_ipc::reader::FileReader::try_new(File::open(entry).unwrap(), None).unwrap() {
            let rows = rows.unwrap();
            let column = |name: &str| rows.column_by_name(name).unwrap().as_string::<i32>().clone();
            assert!(column("view").iter().all(|view| view == Some("feedback")));
            for recording in column("recording").iter() {
                *windows.entry(recording.unwrap().to_owned()).or_default() += 1;
            }
        }
    }
    for (n, alert) in decided.values().enumerate() {
        let id = format!("feedback-{}", alert.alert_id);
        let label = labels.iter().find(|l| l["id"] == id.as_str()).unwrap();
        let (attacks, benign) = (label["hosts"].as_array().unwrap(), label["benign_intervals"].as_array().unwrap());
        assert_eq!((attacks.len(), benign.len()), if n == 0 { (0, 1) } else { (1, 0) }, "{label}");
        assert_eq!((&label["actor"], &label["note"]), (&json!("ann"), &json!("seen before")));
        assert_eq!(windows[&id], alert.detection_count, "every detection's window was found again");
    }

    // The trainer's own loader, where its environment is there.
    let Some(python) = std::env::var_os("LOGSTER_TRAINER_PYTHON") else {
        eprintln!("LOGSTER_TRAINER_PYTHON is not set: the trainer's loader is not tried");
        return;
    };
    let code = "import sys, json, pathlib\nfrom trainer.data import read_feedback\n\
                w = [w for p in ('windows', 'linux') for w in read_feedback(pathlib.Path(sys.argv[1]), p)]\n\
                print(json.dumps(sorted([w.recording, w.label] for w in w)))";
    let output = Command::new(python)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../models"))
        .args(["-c", code, &path("feedback")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Vec<(String, i64)> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read.len() as u64, windows.values().sum::<u64>());
    let first = format!("feedback-{}", decided.keys().next().unwrap());
    assert!(read.iter().all(|(recording, label)| *label == i64::from(*recording != first)), "{read:?}");
}
