//! Detections to published alerts: `cargo bench -p logster-operators --bench dedup`.
//!
//! A fleet in which every endpoint fires each 30 s, spread evenly over the interval, in tenants of ten. Prints
//! detections/s of dedup's core, of its operator, and of both stages with correlation; and memory per alert.

use std::collections::BTreeMap;
use std::time::Instant;

use logster_operators::correlate::{CorrelateConfig, CorrelateMetrics, correlate};
use logster_operators::dedup::{Dedup, DedupConfig, DedupMetrics, dedup};
use logster_schema::{Endpoint, InferenceResult, Peer, Platform, Prediction};
use prometheus::Registry;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::vec::Input;

const ENDPOINTS: u64 = 20_000;
const INTERVAL_MS: u64 = 30_000;
/// Windows of each endpoint.
const ROUNDS: u64 = 5;

fn main() {
    let detections: Vec<(u64, InferenceResult)> = (0..ENDPOINTS * ROUNDS).map(detection).collect();
    let n = detections.len() as f64;

    let before = resident_bytes();
    let mut core = Dedup::new(DedupConfig { max_alerts_per_shard: usize::MAX, ..DedupConfig::default() });
    let input: Vec<_> = detections.iter().map(|(time, result)| (*time, Box::new(result.clone()))).collect();
    let copies = resident_bytes() - before;
    let start = Instant::now();
    for (n, (time, result)) in input.into_iter().enumerate() {
        core.on_detection(time, result);
        if n % 1_000 == 999 {
            core.on_frontier(Some(time));
        }
    }
    core.on_frontier(None);
    println!("dedup, core:              {:>9.0} detections/s", n / start.elapsed().as_secs_f64());
    let held = resident_bytes().saturating_sub(before + copies);
    println!("  alerts held {}, at most {} bytes each (resident)", core.sizes().0, held / core.sizes().0 as u64);

    println!("dedup, operator:          {:>9.0} detections/s", n / operators(&detections, false));
    println!("dedup, correlate, enrich: {:>9.0} detections/s", n / operators(&detections, true));
}

/// The `n`th detection of the fleet: one every interval from each endpoint, each 1.5 ms.
fn detection(n: u64) -> (u64, InferenceResult) {
    let host = n % ENDPOINTS;
    let time = 1_000_000 + n / ENDPOINTS * INTERVAL_MS + host * INTERVAL_MS / ENDPOINTS;
    let window_end = time as i64;
    let endpoint = Endpoint::new(&format!("tenant{}", host / 10), &format!("host{host}"));
    let address = |host: u64| format!("10.{}.{}.{}", host >> 16, host >> 8 & 255, host & 255);
    let peers = (1..9).map(|k| Peer {
        local: Some(address(host)),
        remote: address((host + k * 7) % ENDPOINTS),
        port: 445,
        first_seen: window_end - k as i64,
    });
    let result = InferenceResult {
        inference_id: InferenceResult::id(&endpoint, Platform::Windows, window_end, None, "bench"),
        tenant_id: endpoint.tenant().to_owned(),
        endpoint_id: endpoint.host().to_owned(),
        platform: Platform::Windows,
        timestamp: window_end,
        window_start: window_end - 180_000,
        window_end,
        prediction: Prediction::Attack,
        attack_prob: 0.9,
        confidence: 0.9,
        num_events: 100,
        num_nodes: 20,
        num_edges: 40,
        node_counts: BTreeMap::new(),
        edge_counts: BTreeMap::new(),
        model_version: "bench".to_owned(),
        reason: None,
        backfill: false,
        opened_ms: None,
        sampled_out: 0,
        key_edges: Vec::new(),
        rules: Vec::new(),
        ruleset: None,
        ttp_techniques: vec!["T1021.002".to_owned(), "T1059.001".to_owned()],
        ttp_evidence: vec!["T1021.002: net.exe".to_owned(), "T1059.001: powershell.exe".to_owned()],
        peers: peers.collect(),
        local_addresses: vec![address(host)],
    };
    (time, result)
}

/// Seconds that one worker takes for all detections, the frontier moving each 250 ms of event time.
fn operators(detections: &[(u64, InferenceResult)], correlated: bool) -> f64 {
    let detections = detections.to_vec();
    timely::execute_directly(move |worker| {
        let registry = Registry::new();
        let (dedup_metrics, metrics) =
            (DedupMetrics::new(&registry).expect("once"), CorrelateMetrics::new(&registry).expect("once"));
        let (mut input, transitions, probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (input, results) = scope.new_input();
            let (transitions, decided) = scope.new_input();
            let config = DedupConfig { max_alerts_per_shard: usize::MAX, ..DedupConfig::default() };
            let changes = dedup(results, decided, config, Vec::new(), dedup_metrics).changes;
            let probe = if correlated {
                let config = CorrelateConfig { max_correlated_per_shard: usize::MAX, ..CorrelateConfig::default() };
                correlate(changes, config, Vec::new(), metrics).probe().0
            } else {
                changes.probe().0
            };
            (input, transitions, probe)
        });
        transitions.close();
        let start = Instant::now();
        let mut epoch = 0;
        for (time, result) in detections {
            if time / 250 > epoch {
                epoch = time / 250;
                input.advance_to(epoch * 250);
                while probe.less_than(&(epoch * 250)) {
                    worker.step();
                }
            }
            input.advance_to(time);
            input.send(result);
        }
        input.close();
        while !probe.done() {
            worker.step();
        }
        start.elapsed().as_secs_f64()
    })
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
