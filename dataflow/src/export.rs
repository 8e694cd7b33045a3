//! `logster export-windows`: captures to windows with their graphs, as an Arrow file for the trainer.
//!
//! - Input: captures, one recording a file; the file's name without its ending is the recording, and the
//!   recording is the tenant, as in a backtest: windows lie on the same grid.
//! - Output: one row a window (schema: [`schema`]), recordings in order of their paths, windows in order of
//!   closing. With `views`, Linux recordings come three times: everything, the audit records alone, the
//!   eBPF records alone.
//! - The same normalizer, window operator, graphs and features as a run: the trainer sees what is scored.
//! - Failure: records that a run would dead-letter are counted and left out; errors are for files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, PrimitiveBuilder, StringBuilder};
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use logster_operators::features::tensors;
use logster_operators::graph::{NodeKind, NodeView, PaneGraph};
use logster_operators::window::ClosedWindow;
use logster_schema::{Platform, RawTopic};
use logster_sinks::capture::{self, CaptureError};

use crate::replay::{ReplayConfig, graph_of, replay};

/// Rows of one record batch: bounds memory, both sides.
pub(crate) const BATCH_ROWS: usize = 256;

/// What was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportTotals {
    /// Recordings read.
    pub recordings: u64,
    /// Records read, over all views.
    pub records: u64,
    /// Of these, records that a run would dead-letter.
    pub dead_letters: u64,
    /// Windows written.
    pub windows: u64,
}

/// Why an export stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ExportError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("cannot create {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: ArrowError,
    },
}

/// The raw topics that make up a row's `view`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    All,
    Auditd,
    Ebpf,
}

impl View {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Auditd => "auditd",
            Self::Ebpf => "ebpf",
        }
    }
    fn holds(self, topic: RawTopic) -> bool {
        match self {
            Self::All => true,
            Self::Auditd => topic == RawTopic::Auditd,
            Self::Ebpf => topic.platform() == Platform::Linux && topic != RawTopic::Auditd,
        }
    }
}

/// Exports every recording below `input` to the Arrow IPC file `output`, with `views` each Linux recording also by
/// auditd alone and by eBPF alone; `progress` hears of each recording.
pub fn export_windows(
    input: &Path,
    output: &Path,
    config: &ReplayConfig,
    views: bool,
    mut progress: impl FnMut(&str, &ExportTotals),
) -> Result<ExportTotals, ExportError> {
    let file = File::create(output).map_err(|source| ExportError::Create { path: output.to_path_buf(), source })?;
    let write_error = |source| ExportError::Write { path: output.to_path_buf(), source };
    let mut writer = arrow_ipc::writer::FileWriter::try_new(BufWriter::new(file), &schema()).map_err(write_error)?;
    let mut totals = ExportTotals::default();
    let mut rows = Rows::default();
    for path in capture::files(input)? {
        let recording = recording_name(&path);
        let linux = Cell::new(false);
        let views: &[View] = if views { &[View::All, View::Auditd, View::Ebpf] } else { &[View::All] };
        for &view in views {
            let mut failed = None;
            let wanted = |topic: RawTopic| {
                linux.set(linux.get() || topic.platform() == Platform::Linux);
                view.holds(topic)
            };
            let replayed = replay(&path, Some(&recording), config, wanted, |w| {
                rows.push(&recording, view.name(), &w);
                if rows.count == BATCH_ROWS && failed.is_none() {
                    failed = writer.write(&rows.finish()).err();
                }
            })?;
            totals.records += replayed.records;
            totals.dead_letters += replayed.dead_letters;
            totals.windows += replayed.windows;
            if let Some(source) = failed {
                return Err(write_error(source));
            }
            if !linux.get() {
                break; // one view is all there is
            }
        }
        totals.recordings += 1;
        progress(&recording, &totals);
    }
    if rows.count > 0 {
        writer.write(&rows.finish()).map_err(write_error)?;
    }
    writer.finish().map_err(write_error)?;
    Ok(totals)
}

/// File name up to `.ndjson` or the first dot.
pub(crate) fn recording_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = name.find(".ndjson").or_else(|| name.find(".jsonl")).or_else(|| name.rfind('.'));
    name[..end.unwrap_or(name.len())].to_owned()
}

/// The columns of an exported window: who and when, each node's identity and times, and the tensors of the
/// model's contract for this graph alone (`models/README.md`).
pub fn schema() -> Schema {
    let list = |name: &str, item: DataType| Field::new_list(name, Field::new("item", item, true), false);
    let plain = |name: &str, item: DataType| Field::new(name, item, false);
    Schema::new(vec![
        plain("recording", DataType::Utf8),
        plain("endpoint", DataType::Utf8),
        plain("platform", DataType::Utf8),
        plain("view", DataType::Utf8),
        plain("window_start", DataType::Int64),
        plain("window_end", DataType::Int64),
        plain("backfill", DataType::Boolean),
        plain("events", DataType::UInt64),
        list("node_key", DataType::Utf8),
        list("node_first_ms", DataType::Int64),
        list("node_last_ms", DataType::Int64),
        list("node_type", DataType::UInt8),
        list("node_feat", DataType::Float32),
        list("tok_id", DataType::UInt16),
        list("tok_node", DataType::UInt32),
        list("tree_id", DataType::UInt16),
        list("tree_node", DataType::UInt32),
        list("edge_src", DataType::UInt32),
        list("edge_dst", DataType::UInt32),
        list("edge_type", DataType::UInt8),
        list("edge_feat", DataType::Float32),
        list("graph_feat", DataType::Float32),
    ])
}

type Lists<T> = ListBuilder<PrimitiveBuilder<T>>;

/// Rows of the next record batch.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    recording: StringBuilder,
    endpoint: StringBuilder,
    platform: StringBuilder,
    view: StringBuilder,
    window_start: PrimitiveBuilder<Int64Type>,
    window_end: PrimitiveBuilder<Int64Type>,
    backfill: arrow_array::builder::BooleanBuilder,
    events: PrimitiveBuilder<UInt64Type>,
    node_key: ListBuilder<StringBuilder>,
    node_first_ms: Lists<Int64Type>,
    node_last_ms: Lists<Int64Type>,
    node_type: Lists<UInt8Type>,
    node_feat: Lists<Float32Type>,
    tok_id: Lists<UInt16Type>,
    tok_node: Lists<UInt32Type>,
    tree_id: Lists<UInt16Type>,
    tree_node: Lists<UInt32Type>,
    edge_src: Lists<UInt32Type>,
    edge_dst: Lists<UInt32Type>,
    edge_type: Lists<UInt8Type>,
    edge_feat: Lists<Float32Type>,
    graph_feat: Lists<Float32Type>,
}

fn append<T: ArrowPrimitiveType>(list: &mut Lists<T>, values: impl IntoIterator<Item = T::Native>) {
    for value in values {
        list.values().append_value(value);
    }
    list.append(true);
}

impl Rows {
    pub(crate) fn finish(&mut self) -> RecordBatch {
        self.count = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.recording.finish()),
            Arc::new(self.endpoint.finish()),
            Arc::new(self.platform.finish()),
            Arc::new(self.view.finish()),
            Arc::new(self.window_start.finish()),
            Arc::new(self.window_end.finish()),
            Arc::new(self.backfill.finish()),
            Arc::new(self.events.finish()),
            Arc::new(self.node_key.finish()),
            Arc::new(self.node_first_ms.finish()),
            Arc::new(self.node_last_ms.finish()),
            Arc::new(self.node_type.finish()),
            Arc::new(self.node_feat.finish()),
            Arc::new(self.tok_id.finish()),
            Arc::new(self.tok_node.finish()),
            Arc::new(self.tree_id.finish()),
            Arc::new(self.tree_node.finish()),
            Arc::new(self.edge_src.finish()),
            Arc::new(self.edge_dst.finish()),
            Arc::new(self.edge_type.finish()),
            Arc::new(self.edge_feat.finish()),
            Arc::new(self.graph_feat.finish()),
        ];
        RecordBatch::try_new(Arc::new(schema()), columns).expect("builders follow the schema")
    }
}

impl Rows {
    pub(crate) fn push(&mut self, recording: &str, view: &str, window: &ClosedWindow<PaneGraph>) {
        let graph = graph_of(window);
        let t = tensors(&[&graph]);
        self.count += 1;
        self.recording.append_value(recording);
        self.endpoint.append_value(window.endpoint.host());
        self.platform.append_value(window.platform.name());
        self.view.append_value(view);
        self.window_start.append_value(window.start_ms);
        self.window_end.append_value(window.end_ms);
        self.backfill.append_value(window.opened_ms.is_some());
        self.events.append_value(window.events());
        for node in graph.nodes() {
            self.node_key.values().append_value(identity(&node));
        }
        self.node_key.append(true);
        append(&mut self.node_first_ms, graph.nodes().map(|n| n.first_ms()));
        append(&mut self.node_last_ms, graph.nodes().map(|n| n.last_ms()));
        append(&mut self.node_type, t.node_type.iter().map(|&v| v as u8));
        append(&mut self.node_feat, t.node_feat);
        append(&mut self.tok_id, t.tok_id.iter().map(|&v| v as u16));
        append(&mut self.tok_node, t.tok_node.iter().map(|&v| v as u32));
        append(&mut self.tree_id, t.tree_id.iter().map(|&v| v as u16));
        append(&mut self.tree_node, t.tree_node.iter().map(|&v| v as u32));
        append(&mut self.edge_src, t.edge_src.iter().map(|&v| v as u32));
        append(&mut self.edge_dst, t.edge_dst.iter().map(|&v| v as u32));
        append(&mut self.edge_type, t.edge_type.iter().map(|&v| v as u8));
        append(&mut self.edge_feat, t.edge_feat);
        append(&mut self.graph_feat, t.graph_feat);
    }
}

/// A process's GUID, else its pid and, where its start was seen, that time; empty for other nodes.
fn identity(node: &NodeView<'_>) -> String {
    match (node.kind(), node.guid(), node.pid()) {
        (NodeKind::Process, Some(guid), _) => guid,
        (NodeKind::Process, None, Some(pid)) if node.created() => format!("{pid}@{}", node.first_ms()),
        (NodeKind::Process, None, Some(pid)) => pid.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use logster_operators::normalize::NormalizeConfig;
    use logster_operators::window::WindowConfig;
    use logster_schema::Endpoint;

    /// Two processes of one host within a minute, and a record that is refused.
    fn capture(dir: &Path) -> PathBuf {
        let line = |time: &str, guid: &str, parent: &str| {
            let data = serde_json::json!({
                "ProcessGuid": guid, "ProcessId": "7", "Image": r"C:\Windows\System32\cmd.exe", "CommandLine": "cmd",
                "ParentProcessGuid": parent, "ParentImage": r"C:\Windows\explorer.exe", "UtcTime": time,
            });
            let winlog = serde_json::json!({
                "event_id": 1, "provider_name": "Microsoft-Windows-Sysmon", "computer_name": "H1", "event_data": data,
            });
            let stamp = format!("{}Z", time.replace(' ', "T"));
            serde_json::json!({"topic": "sysmon-logs", "value": {"@timestamp": stamp, "host": {"name": "h1"}, "winlog": winlog}})
                .to_string()
        };
        let a = "{00000000-0000-0000-0000-00000000000a}";
        let b = "{00000000-0000-0000-0000-00000000000b}";
        let text = [line("2020-09-01 10:00:00.000", a, b), "no json".to_owned(), line("2020-09-01 10:00:50.000", b, a)]
            .join("\n");
        let path = dir.join("rec-1.ndjson");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn config() -> ReplayConfig {
        ReplayConfig {
            normalize: NormalizeConfig { time: Default::default(), max_message_bytes: 1 << 20 },
            window: WindowConfig {
                width_ms: 180_000,
                hop_ms: 30_000,
                max_lateness_ms: 10_000,
                max_events: 50_000,
                max_open_backfill: 64,
            },
        }
    }

    #[test]
    fn windows_lie_on_the_grid_of_the_recordings_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let input = capture(dir.path());
        let out = dir.path().join("w.arrow");
        let mut heard = Vec::new();
        let totals = export_windows(&input, &out, &config(), false, |name, _| heard.push(name.to_owned())).unwrap();
        assert_eq!((totals.recordings, totals.records, totals.dead_letters), (1, 3, 1));
        assert_eq!(heard, ["rec-1"]);

        let mut reader = arrow_ipc::reader::FileReader::try_new(File::open(&out).unwrap(), None).unwrap();
        let rows = reader.next().unwrap().unwrap();
        assert_eq!(rows.num_rows() as u64, totals.windows);
        // 50 s apart: seven or eight windows of 180 s every 30 s see at least one of the two.
        assert!((7..=8).contains(&rows.num_rows()), "{}", rows.num_rows());
        let phase = Endpoint::new("rec-1", "h1").phase_ms(30_000);
        let ends = rows.column_by_name("window_end").unwrap().as_primitive::<Int64Type>();
        assert!(ends.values().iter().all(|end| (end - phase) % 30_000 == 0));
        let keys = rows.column_by_name("node_key").unwrap().as_list::<i32>();
        let types = rows.column_by_name("node_type").unwrap().as_list::<i32>();
        let features = rows.column_by_name("node_feat").unwrap().as_list::<i32>();
        for row in 0..rows.num_rows() {
            assert_eq!(keys.value(row).len(), types.value(row).len());
            assert_eq!(features.value(row).len(), types.value(row).len() * 16);
        }
        let first = keys.value(0);
        assert_eq!(first.as_string::<i32>().value(0), "{00000000-0000-0000-0000-00000000000a}");
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let input = capture(dir.path());
        let bytes = |name: &str| {
            let out = dir.path().join(name);
            export_windows(&input, &out, &config(), false, |_, _| ()).unwrap();
            std::fs::read(out).unwrap()
        };
        assert_eq!(bytes("a"), bytes("b"));
    }
}
