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

/// The name with what qualifies it: `powershell.exe (High)`.
fn qualified(node: NodeView<'_>) -> String {
    match node.attribute(Attribute::Integrity) {
        Some(level) => format!("{} ({level})", name(node)),
        None => name(node),
    }
}

/// `powershell.exe (High) wrote C:\...\a.dll 3 times`.
pub(super) fn edge(graph: &WindowGraph, edge: &Edge) -> String {
    let (src, dst) = (graph.node(edge.src), graph.node(edge.dst));
    let (who, what) = (qualified(src), name(dst));
    let example = dst.attribute(Attribute::Example).map(|e| shorten(e, MAX_QUOTE));
    let mut sentence = match (edge.relation, dst.kind()) {
        (Relation::Spawned, _) => match dst.attribute(Attribute::Command) {
            Some(command) => format!("{who} started {what}: {}", shorten(command, MAX_QUOTE)),
            None => format!("{who} started {what}"),
        },
        (Relation::Wrote, _) => format!("{who} wrote {what}"),
        (Relation::Executed, NodeKind::Script) => match example {
            Some(text) => format!("{who} ran {what}: {text}"),
            None => format!("{who} ran {what}"),
        },
        (Relation::Executed, _) if graph.platform() == Platform::Linux => match written_before(graph, edge) {
            Some((seconds, writer)) => format!("{who} executed {what}, written {seconds} s before by {writer}"),
            None => format!("{who} executed {what}"),
        },
        (Relation::Executed, _) if same_program(src.label(), dst.label()) => format!("{who} ran from {what}"),
        (Relation::Executed, _) => format!("{who} loaded {what}"),
        (Relation::ConnectedTo, _) => format!("{who} connected with {what}"),
        (Relation::Performed, NodeKind::Process) => format!("{who} reached into {what}"),
        (Relation::Performed, _) => match example {
            Some(text) => format!("{who}: {what} ({text})"),
            None => format!("{who}: {what}"),
        },
    };
    if edge.count > 1 {
        sentence.push_str(&format!(" {} times", edge.count));
    }
    sentence
}

/// Seconds since the target's first writing, and by whom.
fn written_before(graph: &WindowGraph, run: &Edge) -> Option<(i64, String)> {
    let into = graph.edges().iter().filter(|e| e.dst == run.dst && e.relation == Relation::Wrote);
    let write = into.filter(|e| e.first_ms <= run.last_ms).min_by_key(|e| e.first_ms)?;
    Some(((run.first_ms - write.first_ms).max(0) / 1000, name(graph.node(write.src))))
}

/// `powershell.exe (High) read the memory of LSASS: ...`.
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
