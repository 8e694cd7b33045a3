use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logster_schema::{Activity, Endpoint, Field, Fields, Kind, Lane, Observation, Position, RawTopic};

use super::*;
use crate::graph::PaneGraph;

const FEATURES: &str = crate::features::FEATURE_VERSION;

fn shipped(platform: Platform) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/packages").join(platform.name())
}

/// A copy of the shipped package that a test may spoil.
fn copy(platform: Platform) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(shipped(platform)).unwrap() {
        let to = dir.path().join(entry.as_ref().unwrap().file_name());
        fs::copy(entry.unwrap().path(), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
    }
    dir
}

fn load(dir: &Path) -> Result<ModelPackage, PackageError> {
    ModelPackage::load(dir, Platform::Windows, FEATURES)
}

fn runtime() -> Runtime {
    let path = std::env::var("LOGSTER_ONNXRUNTIME")
        .expect("LOGSTER_ONNXRUNTIME must name libonnxruntime.so: run `make test`, which fetches it and sets this");
    Runtime::load(Path::new(&path)).expect("ONNX Runtime loads")
}

fn packages() -> Vec<(tempfile::TempDir, ModelPackage)> {
    [Platform::Windows, Platform::Linux]
        .map(|p| {
            let dir = copy(p);
            let package = ModelPackage::load(dir.path(), p, FEATURES).unwrap();
            (dir, package)
        })
        .into()
}

fn scorer(config: ScorerConfig) -> Scorer {
    let packages: Vec<ModelPackage> = packages().into_iter().map(|(_, p)| p).collect();
    Scorer::new(&runtime(), &packages, config).unwrap()
}

/// A pseudo-random process tree of `processes`: a fixed generator, so that a failure repeats.
fn graph(platform: Platform, seed: u64, processes: u32) -> Arc<WindowGraph> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = move |n: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as u32 % n.max(1)
    };
    let guid = |n: u32| format!("{{00000000-0000-0000-0000-{:012x}}}", n + 1);
    let names = ["cmd.exe", "powershell.exe", "svchost.exe", "rundll32.exe", "whoami.exe"];
    let observations: Vec<Observation> = (0..processes)
        .map(|n| {
            let mut fields = Fields::builder();
            fields
                .push(Field::ProcessGuid, &guid(n))
                .push(Field::ProcessId, &(n + 100).to_string())
                .push(Field::Image, &format!(r"C:\Windows\System32\{}", names[below(5) as usize]))
                .push(Field::CommandLine, &format!("-enc {}", below(1000)))
                .push(Field::ParentProcessGuid, &guid(below(n)));
            Observation {
                endpoint: Endpoint::new("t", "h"),
                platform,
                time_ms: i64::from(n * 100 + below(100)),
                arrival_ms: 0,
                lane: Lane::Live,
                position: Position { topic: RawTopic::Sysmon, partition: 0, offset: i64::from(n) },
                activity: Activity { kind: Kind::Sysmon(1), fields: fields.finish() },
                rules: None,
            }
        })
        .collect();
    // Sysmon's features for either platform: the model sees numbers only.
    let pane = PaneGraph::seal(Platform::Windows, &observations);
    Arc::new(WindowGraph::merge(platform, 0, 180_000, &[&pane]))
}

fn score_all(scorer: &Scorer, jobs: &[Arc<WindowGraph>]) -> Vec<Result<GraphScore, String>> {
    scorer.score_all(jobs.iter().map(|graph| (graph.clone(), None)))
}

#[test]
fn a_shipped_package_loads_and_names_itself() {
    for (_dir, package) in packages() {
        assert!(package.model_version().starts_with(&format!("logster-{}-", package.platform())));
        assert_eq!(package.digest().len(), 64);
    }
}

#[test]
fn a_changed_file_is_refused() {
    for file in ["model.onnx", "selftest.json"] {
        let dir = copy(Platform::Windows);
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let e = load(dir.path()).unwrap_err();
        assert!(matches!(&e, PackageError::Digest { path, .. } if path.ends_with(file)), "{e}");
    }
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    for (file, mode) in [("model.onnx", 0o666), ("manifest.toml", 0o646), ("", 0o777)] {
        let dir = copy(Platform::Windows);
        fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(mode)).unwrap();
        let e = load(dir.path()).unwrap_err();
        assert!(matches!(e, PackageError::Writable { mode: m, .. } if m == mode), "{e}");
        assert!(e.to_string().contains("chmod o-w"), "{e}");
    }
    // As a clone under umask 002 leaves it.
    let dir = copy(Platform::Windows);
    for (file, mode) in [("model.onnx", 0o664), ("manifest.toml", 0o664), ("", 0o775)] {
        fs::set_permissions(dir.path().join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    load(dir.path()).unwrap();
}

#[test]
fn missing_files_and_wrong_manifests_are_refused() {
    let dir = copy(Platform::Windows);
    assert!(matches!(
        ModelPackage::load(dir.path(), Platform::Linux, FEATURES),
        Err(PackageError::Platform { found: Platform::Windows, .. })
    ));
    assert!(matches!(
        ModelPackage::load(dir.path(), Platform::Windows, "logster-features-0"),
        Err(PackageError::FeatureVersion { found, .. }) if found == FEATURES
    ));
    fs::remove_file(dir.path().join("model.onnx")).unwrap();
    assert!(matches!(load(dir.path()), Err(PackageError::Missing { .. })));
    fs::remove_file(dir.path().join("manifest.toml")).unwrap();
    assert!(matches!(load(dir.path()), Err(PackageError::Read { .. })));

    let edits: [(&str, &str); 4] = [
        ("format = 1", "format = 2"),
        ("\"model.onnx\" =", "\"../model.onnx\" ="),
        ("feature_version", "feature_versions"),
        ("\"selftest.json\" =", "\"other.json\" ="),
    ];
    for (from, to) in edits {
        let dir = copy(Platform::Windows);
        let path = dir.path().join("manifest.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(&path, text.replace(from, to)).unwrap();
        let e = load(dir.path()).unwrap_err();
        assert!(matches!(e, PackageError::Manifest { .. }), "{to}: {e}");
    }
}

/// Rewrites one line of the manifest or one file, with digests that fit: what a digest cannot catch.
fn forged(edit: impl Fn(&mut String, &mut Vec<u8>, &mut Vec<u8>)) -> Result<ModelSession, SessionError> {
    let runtime = runtime();
    let dir = copy(Platform::Windows);
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let mut manifest = String::from_utf8(read("manifest.toml")).unwrap();
    let (mut model, mut test) = (read("model.onnx"), read("selftest.json"));
    edit(&mut manifest, &mut model, &mut test);
    use sha2::{Digest, Sha256};
    let hex = |b: &[u8]| Sha256::digest(b).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let files = manifest.find("[files]").unwrap();
    manifest.truncate(files);
    manifest += &format!("[files]\n\"model.onnx\" = \"{}\"\n\"selftest.json\" = \"{}\"\n", hex(&model), hex(&test));
    fs::write(dir.path().join("manifest.toml"), manifest).unwrap();
    fs::write(dir.path().join("model.onnx"), model).unwrap();
    fs::write(dir.path().join("selftest.json"), test).unwrap();
    ModelSession::open(&runtime, &load(dir.path()).unwrap(), Device::Cpu, false)
}

#[test]
fn a_session_checks_contract_and_self_test() {
    forged(|_, _, _| ()).map(drop).expect("an honest copy opens");
    let wrong_output = forged(|_, _, test| {
        let mut json: serde_json::Value = serde_json::from_slice(test).unwrap();
        let p = json["outputs"]["logits"][0].as_f64().unwrap();
        json["outputs"]["logits"][0] = (p + 0.01).into();
        *test = serde_json::to_vec(&json).unwrap();
    });
    assert!(matches!(wrong_output.map(drop), Err(SessionError::SelfTest { .. })));
    let other_contract =
        forged(|manifest, _, _| *manifest = manifest.replace("edge_feat: f32[E,8]", "edge_feat: f32[E,9]"));
    assert!(matches!(other_contract.map(drop), Err(SessionError::Contract { what: "inputs", .. })));
    let extra_input = forged(|manifest, _, _| {
        *manifest = manifest.replace("\"node_type: i64[N]\"", "\"node_type: i64[N]\", \"x: i64[N]\"")
    });
    assert!(matches!(extra_input.map(drop), Err(SessionError::Contract { .. })));
    let not_onnx = forged(|_, model, _| *model = b"not a model".to_vec());
    assert!(matches!(not_onnx.map(drop), Err(SessionError::Model { .. })));
}

#[test]
fn a_cuda_device_that_is_not_there_is_an_error_or_a_fall_back() {
    let (_dir, package) = packages().swap_remove(0);
    let open = |fallback| ModelSession::open(&runtime(), &package, Device::Cuda, fallback).map(drop);
    // On a machine with a GPU both succeed; the point is that nothing falls back unasked.
    if let Err(e) = open(false) {
        assert!(matches!(e, SessionError::Cuda { .. }), "{e}");
        open(true).expect("falls back to the CPU when told so");
    }
}

#[test]
fn a_score_does_not_depend_on_batch_mates_or_threads() {
    let jobs: Vec<_> = (0..120)
        .map(|i| graph(if i % 3 == 0 { Platform::Linux } else { Platform::Windows }, i, 1 + (i as u32 * 37) % 300))
        .collect();
    let alone = score_all(&scorer(ScorerConfig { max_batch_edges: 0, ..ScorerConfig::default() }), &jobs);
    assert!(alone.iter().all(Result::is_ok));
    for (threads, max_batch_edges) in [(1, 2000), (1, 1_000_000), (2, 8192)] {
        let config = ScorerConfig { threads, max_batch_edges, queue: 200, ..ScorerConfig::default() };
        let together = score_all(&scorer(config), &jobs);
        for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
            let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
            assert_eq!(a.attack_prob.to_bits(), b.attack_prob.to_bits(), "graph {i}");
            assert!(a.node_score.iter().zip(&b.node_score).all(|(x, y)| x.to_bits() == y.to_bits()), "graph {i}");
            let bits = |s: &GraphScore| s.edge_attn.iter().map(|(f, r)| (f.to_bits(), r.to_bits())).collect::<Vec<_>>();
            assert_eq!(bits(a), bits(b), "graph {i}");
        }
    }
    let (score, graph) = (alone[5].as_ref().unwrap(), &jobs[5]);
    assert_eq!(
        (score.node_score.len(), score.edge_attn.len()),
        (graph.num_nodes() as usize, graph.num_edges() as usize)
    );
    assert!(score.edge_attn.len() > 100);
    assert!((0.0..=1.0).contains(&score.attack_prob) && (score.attack_prob * 1e6).round() / 1e6 == score.attack_prob);
}

#[test]
fn a_platform_without_a_package_is_answered_with_the_reason() {
    let package = packages().swap_remove(0).1;
    let scorer = Scorer::new(&runtime(), &[package], ScorerConfig::default()).unwrap();
    let scores = score_all(&scorer, &[graph(Platform::Linux, 1, 3)]);
    assert!(scores[0].as_ref().unwrap_err().contains("linux"));
}

#[test]
fn jobs_in_flight_are_bounded_until_results_are_taken() {
    let scorer = scorer(ScorerConfig { queue: 4, ..ScorerConfig::default() });
    let client = scorer.client(Box::new(|| ()));
    let mut accepted = 0;
    for ticket in 0..50 {
        let job = Job { ticket, graph: graph(Platform::Windows, ticket, 5), explain: None };
        accepted += usize::from(client.try_submit(job).is_ok());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!((accepted, client.in_flight()), (4, 4));
}
