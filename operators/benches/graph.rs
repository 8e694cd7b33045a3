//! Panes and windows on the captures: `cargo bench -p logster-operators --bench graph`.
//!
//! Reads the captures under `LOGSTER_CORPUS` (at most 64 MB a capture), normalizes them, and cuts each endpoint's
//! observations into panes of 30 s. Prints, for each platform, events/s of sealing and of sealing with one merge of
//! six panes at every pane's end, windows/s of the merge and of the tensors, and the bytes that sealed panes hold per
//! event. Time is the thread's on its core, so that neighbours count little. The best of five rounds. `-- windows` or `-- linux` measures one platform only.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use logster_operators::features::tensors;
use logster_operators::graph::{PaneGraph, WindowGraph};
use logster_operators::normalize::{NormalizeConfig, Normalizer, Outcome, RawRecord};
use logster_schema::{Observation, Platform, TimeLimits};
use support::{messages, on_cpu};

const BYTES_A_CAPTURE: usize = 64_000_000;
const ROUNDS: usize = 5;
const PANE_MS: i64 = 30_000;
const PANES_A_WINDOW: i64 = 6;

/// One endpoint of one capture: its panes by number.
type Host = BTreeMap<i64, Vec<Observation>>;

fn main() {
    let Some(root) = std::env::var_os("LOGSTER_CORPUS").map(PathBuf::from) else {
        println!("skipped: LOGSTER_CORPUS is not set");
        return;
    };
    let wanted = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    for platform in Platform::ALL.into_iter().filter(|p| wanted.as_ref().is_none_or(|w| w == p.name())) {
        let hosts = load(root.join(platform.name()));
        let panes: usize = hosts.iter().map(Host::len).sum();
        let events: usize = hosts.iter().flat_map(Host::values).map(Vec::len).sum();
        let (mut seal, mut merge, mut tensor) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
        let (mut bytes, mut windows, mut nodes, mut edges, mut tokens) = (0, 0, 0, 0, 0);
        for _ in 0..ROUNDS {
            let start = on_cpu();
            let sealed: Vec<BTreeMap<i64, PaneGraph>> = hosts
                .iter()
                .map(|host| host.iter().map(|(&n, o)| (n, PaneGraph::seal(platform, o))).collect())
                .collect();
            seal = f64::min(seal, on_cpu() - start);
            bytes = sealed.iter().flat_map(BTreeMap::values).map(|p| p.heap_bytes() + size_of::<PaneGraph>()).sum();

            let start = on_cpu();
            let mut graphs = Vec::new();
            for host in &sealed {
                for &last in host.keys() {
                    let panes: Vec<&PaneGraph> = host.range(last - PANES_A_WINDOW + 1..=last).map(|(_, p)| p).collect();
                    let end_ms = (last + 1) * PANE_MS;
                    graphs.push(WindowGraph::merge(platform, end_ms - PANES_A_WINDOW * PANE_MS, end_ms, &panes));
                }
            }
            merge = f64::min(merge, on_cpu() - start);

            let start = on_cpu();
            (windows, nodes, edges, tokens) = (graphs.len(), 0, 0, 0);
            for graph in &graphs {
                let t = std::hint::black_box(tensors(&[graph]));
                nodes += t.num_nodes();
                edges += t.num_edges();
                tokens += t.tok_id.len() + t.tree_id.len();
            }
            tensor = f64::min(tensor, on_cpu() - start);
        }
        let n = windows as f64;
        println!("{}: {events} events in {panes} panes of {} endpoints", platform.name(), hosts.len());
        println!("  seal             {:>10.0} events/s", events as f64 / seal);
        println!("  seal and merge   {:>10.0} events/s", events as f64 / (seal + merge));
        println!("  merge            {:>10.0} windows/s", n / merge);
        println!("  tensors          {:>10.0} windows/s", n / tensor);
        println!("  held             {:>10.0} bytes an event", bytes as f64 / events as f64);
        println!(
            "  a window         {:>10.0} nodes, {:.0} edges, {:.0} tokens",
            nodes as f64 / n,
            edges as f64 / n,
            tokens as f64 / n
        );
    }
}

fn load(folder: PathBuf) -> Vec<Host> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "zst"));
    files.sort();
    let mut normalizer = Normalizer::new(NormalizeConfig { time: TimeLimits::default(), max_message_bytes: 1 << 20 });
    let mut hosts = Vec::new();
    for path in files {
        let (mut bytes, mut arrival_ms, mut offset) = (0, 0, 0);
        let mut here: BTreeMap<String, Host> = BTreeMap::new();
        messages(&path, |topic, time, payload| {
            arrival_ms = arrival_ms.max(time);
            let record = RawRecord { topic, partition: 0, offset, arrival_ms, key: None, payload };
            offset += 1;
            if let Outcome::Event(event) = normalizer.normalize(&record) {
                let pane = event.observation.time_ms.div_euclid(PANE_MS);
                let host = here.entry(event.endpoint.key().to_owned()).or_default();
                host.entry(pane).or_default().push(event.observation);
            }
            bytes += payload.len();
            bytes <= BYTES_A_CAPTURE
        });
        for mut host in here.into_values() {
            host.values_mut().for_each(|pane| pane.sort_by_key(Observation::order));
            hosts.push(host);
        }
    }
    hosts
}
