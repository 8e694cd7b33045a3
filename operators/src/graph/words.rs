//! Sentences about nodes and edges for people: what happened, to what, how often. Bounded in length.

use logster_schema::Platform;

use super::window::{Edge, NodeView, WindowGraph};
use super::{Attribute, NodeKind, Relation, Technique};

/// Longest name of a node within a sentence, in characters.
const MAX_NAME: usize = 100;
/// Longest quoted command line or text, in characters.
const MAX_QUOTE: usize = 140;

/// The node's name, cut in the middle when long: both ends of a path tell.
pub(super) fn name(node: NodeView<'_>) -> String {
    let label = node.label();
    if !label.is_empty() {
        return shorten(label, MAX_NAME);
    }
    match (node.kind(), node.pid()) {
        (NodeKind::Process, Some(pid)) => format!("process {pid}"),
        (NodeKind::Process, None) => "an unnamed process".to_owned(),
        (kind, _) => format!("an unnamed {}", kind.name()),
    }
}

/// The name with what qualifies it: `powershell.exe (admin)`.
fn qualified(node: NodeView<'_>) -> String {
    // Windows integrity levels as people say them; the ordinary one goes without saying.
    let level = match node.attribute(Attribute::Integrity) {
        Some("High") => "admin",
        Some("System") => "SYSTEM",
        Some("Low" | "Untrusted" | "AppContainer") => "sandboxed",
        Some("Medium") | None => return name(node),
        Some(level) => level,
    };
    format!("{} ({level})", name(node))
}

/// [`qualified`], unless `beside`, named before, has the same rights.
fn qualified_beside(node: NodeView<'_>, beside: NodeView<'_>) -> String {
    let same = node.attribute(Attribute::Integrity) == beside.attribute(Attribute::Integrity);
    if same { name(node) } else { qualified(node) }
}

/// `powershell.exe (admin) wrote C:\...\a.dll 3 times, then rundll32.exe loaded it, 12 s later`.
pub(super) fn edge(graph: &WindowGraph, edge: &Edge) -> String {
    let (src, dst) = (graph.node(edge.src), graph.node(edge.dst));
    let (who, what) = (qualified(src), name(dst));
    let example = dst.attribute(Attribute::Example).map(|e| shorten(e, MAX_QUOTE));
    let mut sentence = match (edge.relation, dst.kind()) {
        (Relation::Spawned, _) if what == name(src) => format!("{who} started another {what}"),
        (Relation::Spawned, _) => format!("{who} started {}", qualified_beside(dst, src)),
        (Relation::Wrote, _) => format!("{who} wrote {what}"),
        (Relation::Executed, NodeKind::Script) => format!("{who} ran {what}"),
        (Relation::Executed, _) => format!("{who} {} {what}", ran(graph, edge)),
        (Relation::ConnectedTo, _) => format!("{who} connected with {what}"),
        (Relation::Performed, NodeKind::Process) => format!("{who} reached into {what}"),
        (Relation::Performed, _) => format!("{who}: {what}"),
    };
    if edge.count > 1 {
        sentence.push_str(&format!(" {} times", edge.count));
    }
    match (edge.relation, dst.kind()) {
        (Relation::Spawned, _) => {
            if let Some(command) = dst.attribute(Attribute::Command) {
                sentence.push_str(&format!(": {}", shorten(command, MAX_QUOTE)));
            }
        }
        (Relation::Wrote, _) => {
            if let Some(run) = run_after(graph, edge) {
                let by = if run.src == edge.src { "it".to_owned() } else { qualified_beside(graph.node(run.src), src) };
                let seconds = seconds_between(edge, run);
                sentence.push_str(&format!(", then {by} {} it, {seconds} s later", ran(graph, run)));
            }
        }
        (Relation::Executed, NodeKind::Script) => sentence.extend(example.map(|text| format!(": {text}"))),
        (Relation::Executed, _) => {
            if let Some(write) = written_before(graph, edge) {
                let by = if write.src == edge.src {
                    "itself".to_owned()
                } else {
                    qualified_beside(graph.node(write.src), src)
                };
                sentence.push_str(&format!(", written {} s before by {by}", seconds_between(write, edge)));
            }
        }
        (Relation::Performed, NodeKind::Process) | (Relation::ConnectedTo, _) => {}
        (Relation::Performed, _) => sentence.extend(example.map(|text| format!(" ({text})"))),
    }
    sentence
}

/// What a program does with a file that it runs: its own image, a library, on Linux whatever it executes.
fn ran(graph: &WindowGraph, run: &Edge) -> &'static str {
    match graph.platform() {
        Platform::Linux => "executed",
        Platform::Windows if same_program(graph.node(run.src).label(), graph.node(run.dst).label()) => "ran from",
        Platform::Windows => "loaded",
    }
}

/// The first writing of a file that was run.
fn written_before<'a>(graph: &'a WindowGraph, run: &Edge) -> Option<&'a Edge> {
    let into = graph.edges().iter().filter(|e| e.dst == run.dst && e.relation == Relation::Wrote);
    into.filter(|e| e.first_ms <= run.last_ms).min_by_key(|e| e.first_ms)
}

/// The first run of a file that was written.
fn run_after<'a>(graph: &'a WindowGraph, write: &Edge) -> Option<&'a Edge> {
    let into = graph.edges().iter().filter(|e| e.dst == write.dst && e.relation == Relation::Executed);
    into.filter(|e| write.first_ms <= e.last_ms).min_by_key(|e| e.first_ms)
}

/// Seconds from a file's writing to its run: to the first run after it.
fn seconds_between(write: &Edge, run: &Edge) -> i64 {
    let ran = if run.first_ms >= write.first_ms { run.first_ms } else { run.last_ms };
    (ran - write.first_ms).max(0) / 1000
}

/// `powershell.exe (admin) read the memory of LSASS: ...`.
pub(super) fn finding(node: NodeView<'_>, technique: &Technique, detail: &str) -> String {
    let who = qualified(node);
    match detail {
        "" => format!("{who} {}", technique.did),
        detail => format!("{who} {}: {}", technique.did, shorten(detail, MAX_QUOTE)),
    }
}

/// The file is the program's own image.
fn same_program(process: &str, file: &str) -> bool {
    let base = file.rsplit(['\\', '/']).next().unwrap_or_default();
    base.eq_ignore_ascii_case(process) || file.eq_ignore_ascii_case(process)
}

/// At most `limit` characters on one line, the middle left out.
fn shorten(text: &str, limit: usize) -> String {
    let flat: Vec<char> = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    if flat.len() <= limit {
        return flat.into_iter().collect();
    }
    let head = limit * 3 / 5;
    let tail = limit - head - 1;
    flat[..head].iter().chain(['…'].iter()).chain(&flat[flat.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_lose_their_middle() {
        assert_eq!(shorten("a  b\r\nc", 10), "a b c");
        let cut = shorten(&"é".repeat(500), 100);
        assert_eq!(cut.chars().count(), 100);
        assert!(same_program("cmd.exe", r"C:\Windows\System32\CMD.EXE") && !same_program("cmd.exe", r"C:\x.dll"));
    }
}
