//! Model packages in operation: verified, compared, refused; a live run watches its model (drift, a shadow) and swaps it
//! on SIGHUP, and every window has exactly one verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant, UNIX_EPOCH};

use logster_operators::score::drift::QUANTITIES;
use logster_schema::{InferenceResult, OutputTopic, TimeMs, time};
use logster_sinks::reader::{End, read_committed};
use logster_sinks::testkit::Cluster;
use serde_json::json;

use crate::live::replayed;
use crate::outputs::Outputs;
use crate::process::{Run, Shape, logster, succeed};

const WAIT: Duration = Duration::from_secs(60);
/// Hosts that send.
const HOSTS: usize = 64;
/// Short windows, so that there are many.
const WINDOWS: [&str; 6] =
    ["--set", "inference.window=2s", "--set", "inference.interval=1s", "--set", "input.max_lateness=1s"];
const OLD: &str = "logster-windows-old";
const NEW: &str = "logster-windows-new";

/// A copy of the shipped packages.
fn packages(to: &Path) -> PathBuf {
    for platform in ["windows", "linux"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/packages").join(platform);
        std::fs::create_dir_all(to.join(platform)).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(platform).join(entry.file_name())).unwrap();
        }
    }
    to.to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Changes a package's manifest; the digests in it still hold.
fn edit(package: &Path, change: impl FnOnce(&mut toml::Table)) {
    let path = package.join("manifest.toml");
    let mut manifest = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    change(&mut manifest);
    std::fs::write(&path, manifest.to_string()).unwrap();
}

/// Gives a package another version.
fn rename(package: &Path, version: &str) {
    edit(package, |manifest| drop(manifest.insert("version".to_owned(), version.into())));
}

/// Makes a package believe that it was trained on windows of a million nodes, and of no connections.
fn refer(package: &Path) {
    let counts = |bins: usize, at: usize| -> Vec<i64> { (0..bins).map(|bin| i64::from(bin == at) * 1000).collect() };
    let mut reference = toml::Table::new();
    for (quantity, bins) in QUANTITIES.iter().zip([10, 21, 21, 21, 21, 21, 21, 21, 7]) {
        let at = if *quantity == "nodes" { bins - 1 } else { 0 };
        reference.insert((*quantity).to_owned(), counts(bins, at).into());
    }
    edit(package, |manifest| drop(manifest.insert("reference".to_owned(), reference.into())));
}

/// A process started on each host, now.
fn starts(n: usize) -> String {
    let now = time::format(UNIX_EPOCH.elapsed().unwrap().as_millis() as TimeMs);
    let guid = |n: usize| format!("{{00000000-0000-0000-0000-{n:012x}}}");
    let line = |host: usize| {
        let data = json!({
            "ProcessGuid": guid(n), "ProcessId": "7", "Image": "C:\\Windows\\System32\\cmd.exe",
            "CommandLine": "cmd", "ParentProcessGuid": guid(0), "ParentImage": "C:\\Windows\\explorer.exe",
            "UtcTime": now.replace('T', " ").trim_end_matches('Z'),
        });
        let winlog = json!({"event_id": 1, "provider_name": "Microsoft-Windows-Sysmon", "event_data": data});
        let value = json!({"@timestamp": now, "host": {"name": format!("h{host}")}, "winlog": winlog});
        json!({"topic": "sysmon-logs", "value": value}).to_string() + "\n"
    };
    (0..HOSTS).map(line).collect()
}

/// The ends of a host's windows, for each host, and who judged them.
fn verdicts(outputs: &Outputs) -> BTreeMap<String, Vec<(TimeMs, String)>> {
    let records = outputs.keys(OutputTopic::Results).flat_map(|(_, records)| records);
    let mut hosts: BTreeMap<String, Vec<(TimeMs, String)>> = BTreeMap::new();
    for record in records {
        let result: InferenceResult = serde_json::from_str(record).unwrap();
        hosts.entry(result.endpoint_id).or_default().push((result.window_end, result.model_version));
    }
    hosts
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

#[test]
fn a_live_run_watches_its_model_and_swaps_it_on_hangup() {
    let dir = tempfile::tempdir().unwrap();
    let copy = packages(&dir.path().join("packages"));
    rename(&copy.join("windows"), "old");
    refer(&copy.join("windows"));
    let shadow = packages(&dir.path().join("shadow"));
    let cluster = Cluster::start();
    let (brokers, kafka) = (cluster.brokers(), cluster.config());
    succeed(logster(&["topics", "create", "--kafka", brokers]));
    let (active, beside) = (format!("model.packages={}", copy.display()), format!("model.shadow={}", shadow.display()));
    let args = [&["--kafka", brokers, "--set", &active, "--set", &beside], &WINDOWS[..]].concat();
    let mut run = Run::start(dir.path(), "run", Shape { processes: 1, workers: 2 }, &args);
    run.wait_until(WAIT, "the first commit", |run| run.is_ready());

    let event = dir.path().join("event.ndjson");
    let mut n = 0;
    let mut until_judged = |run: &Run, version: &str, least: usize| {
        let deadline = Instant::now() + 2 * WAIT;
        let mut judged = 0;
        while judged < least {
            assert!(Instant::now() < deadline, "{judged} of {least} results of {version}:\n{}", run.text(0));
            n += 1;
            std::fs::write(&event, starts(n)).unwrap();
            succeed(logster(&["produce", "--kafka", brokers, "--input", event.to_str().unwrap()]));
            let results = read_committed(&kafka, OutputTopic::Results.name(), End::Stable, WAIT).unwrap();
            let versions = results.into_iter().map(|r| serde_json::from_slice(&r.value.unwrap()).unwrap());
            judged = versions.filter(|result: &InferenceResult| result.model_version == version).count();
        }
        judged
    };
    // Drift speaks from 256 windows on.
    let before = until_judged(&run, OLD, 320 + HOSTS);
    let drift = |quantity| run.metric(&format!("logster_drift_psi{{platform=\"windows\",quantity=\"{quantity}\"}}"));
    assert!(drift("nodes") > 0.25, "windows of two nodes instead of a million: {}", drift("nodes"));
    assert!(drift("network") < 1e-9 && run.metric("logster_drift_psi{") > drift("nodes"), "no connections now as then");
    let shadow =
        |outcome| run.metric(&format!("logster_shadow_windows_total{{outcome=\"{outcome}\",platform=\"windows\"}}"));
    assert!(shadow("agreed") > 0.0, "the same model in the shadow agrees");
    assert_eq!(shadow("gained") + shadow("lost") + shadow("failed"), 0.0);

    // A package that is refused changes nothing.
    let model = copy.join("windows/model.onnx");
    let honest = std::fs::read(&model).unwrap();
    std::fs::write(&model, b"no model").unwrap();
    run.signal(0, "HUP");
    run.wait_until(WAIT, "the refusal", |run| run.text(0).contains("the models in use stay"));
    std::fs::write(&model, honest).unwrap();
    until_judged(&run, OLD, before + 2 * HOSTS);

    rename(&copy.join("windows"), "new");
    run.signal(0, "HUP");
    until_judged(&run, NEW, 3 * HOSTS);
    run.signal(0, "TERM");
    assert!(run.end(WAIT).iter().all(|end| end.code == Some(0)), "{}", run.text(0));
    let mut rest = logster(&["run", "--kafka", brokers, "--until-end", "--set", &active]);
    rest.args(WINDOWS);
    succeed(rest);

    let got = verdicts(&Outputs::of_topics(&kafka));
    let (_, undisturbed) = replayed(&kafka, dir.path(), &WINDOWS);
    let ends = |hosts: &BTreeMap<String, Vec<(TimeMs, String)>>| -> BTreeMap<String, Vec<TimeMs>> {
        hosts.iter().map(|(host, windows)| (host.clone(), windows.iter().map(|(end, _)| *end).collect())).collect()
    };
    assert_eq!(ends(&got), ends(&verdicts(&undisturbed)), "every window once, none missing");
    for (host, windows) in got {
        let judges: Vec<&str> = windows.iter().map(|(_, version)| version.as_str()).collect();
        let boundary = judges.partition_point(|version| *version == OLD);
        assert!(judges[boundary..].iter().all(|version| *version == NEW), "{host}, one boundary: {windows:?}");
        assert_eq!(judges.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([OLD, NEW]), "{host}");
    }
}
