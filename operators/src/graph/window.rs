//! The graph of one window: its panes merged, with what only the whole window can tell.
//!
//! - Input: the sealed panes that overlap the window, in time order.
//! - Output: nodes, edges sorted by `(dst, src, relation)`, tokens per node, findings, peers, sentences.
//! - State: none. Texts stay in the panes' buffers, which are shared.
//! - Ordering: nodes are numbered by first appearance. For processes with GUIDs the nodes, edges, counts and
//!   tokens do not depend on where pane boundaries fall.
//!
//! Decided here: which earlier process a pid-only process is; whether a handle was a parent's to its own
//! child; whether a file that was written was also run; what the relatives of a process showed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use logster_schema::{KeyEdge, Peer, Platform, TimeMs};
use rustc_hash::{FxHashMap, FxHashSet};

use super::occlusion::Deleted;
use super::{Attribute, NO_PID, NodeKind, PaneEdge, PaneGraph, Relation, Technique, Text, bits, format_guid, words};
use crate::features::{self, TokenId};

/// Generations that suspicion travels along a process tree, up or down.
const TREE_DEPTH: usize = 6;
/// Peers reported of a window.
const MAX_PEERS: usize = 64;
/// Own addresses reported of a window.
const MAX_LOCAL_ADDRESSES: usize = 16;
/// Sentences reported of one technique.
const MAX_SENTENCES: usize = 3;

/// A file was written and run (or loaded) in the same window: on the process that ran it.
const RAN_WRITTEN: &str = "f:ran_written_file";
/// The same, on the process that wrote it.
const WROTE_RUN: &str = "f:wrote_run_file";

#[derive(Clone, Debug)]
struct WindowNode {
    key: [u64; 2],
    kind: NodeKind,
    bits: u8,
    pid: u32,
    first_ms: TimeMs,
    last_ms: TimeMs,
    label: (u16, Text),
}

/// An edge: same source, target and relation counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Node number of the source.
    pub src: u32,
    /// Node number of the target.
    pub dst: u32,
    /// What it says.
    pub relation: Relation,
    /// Times seen.
    pub count: u32,
    /// First time.
    pub first_ms: TimeMs,
    /// Last time.
    pub last_ms: TimeMs,
}

/// One ATT&CK technique that the window's facts show.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// `T1003.001`.
    pub technique: &'static str,
    /// Who did what.
    pub sentence: String,
}

/// What can be asked about a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    graph: &'a WindowGraph,
    at: usize,
}

/// The graph of one window of one endpoint.
#[derive(Clone, Debug)]
pub struct WindowGraph {
    start_ms: TimeMs,
    end_ms: TimeMs,
    platform: Platform,
    events: u32,
    panes: u32,
    nodes: Vec<WindowNode>,
    edges: Vec<Edge>,
    /// Sorted by node, then id; at most one per node and id.
    tokens: Vec<(u32, TokenId)>,
    token_ends: Vec<u32>,
    attributes: FxHashMap<(u32, Attribute), (u16, Text)>,
    findings: Vec<(&'static Technique, u32, (u16, Text))>,
    peers: Vec<Peer>,
    local_addresses: Vec<String>,
    texts: Vec<Arc<str>>,
}

impl WindowGraph {
    /// Merges `panes`, given in time order, into the window `[start_ms, end_ms)`.
    pub fn merge(platform: Platform, start_ms: TimeMs, end_ms: TimeMs, panes: &[&PaneGraph]) -> Self {
        Self::merge_without(platform, start_ms, end_ms, panes, None).0
    }

    /// The merge of `panes` without what is `deleted`, which names nodes by their numbers in the whole graph; and for
    /// each pane the numbers that its nodes have there.
    pub(super) fn merge_without(
        platform: Platform,
        start_ms: TimeMs,
        end_ms: TimeMs,
        panes: &[&PaneGraph],
        deleted: Option<&Deleted>,
    ) -> (Self, Vec<Vec<u32>>) {
        let mut merge = Merge { deleted, ..Merge::default() };
        let mut graph = Self {
            start_ms,
            end_ms,
            platform,
            events: panes.iter().fold(0, |n, p| n.saturating_add(p.events)),
            panes: panes.iter().filter(|p| p.events > 0).count() as u32,
            nodes: Vec::new(),
            edges: Vec::new(),
            tokens: Vec::new(),
            token_ends: Vec::new(),
            attributes: FxHashMap::default(),
            findings: Vec::new(),
            peers: Vec::new(),
            local_addresses: Vec::new(),
            texts: panes.iter().map(|p| p.text.clone()).collect(),
        };
        for (number, pane) in panes.iter().enumerate() {
            merge.pane(&mut graph, number as u16, pane);
        }
        let numbers = std::mem::take(&mut merge.numbers);
        merge.finish(&mut graph);
        (graph, numbers)
    }

    /// Start of the window, inclusive.
    pub fn start_ms(&self) -> TimeMs {
        self.start_ms
    }

    /// End of the window, exclusive.
    pub fn end_ms(&self) -> TimeMs {
        self.end_ms
    }

    /// Whose features it has.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// Events in the graph.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Panes with events.
    pub fn active_panes(&self) -> u32 {
        self.panes
    }

    /// Number of nodes.
    pub fn num_nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// Number of edges.
    pub fn num_edges(&self) -> u32 {
        self.edges.len() as u32
    }

    /// Nodes by kind; kinds that do not occur are left out.
    pub fn node_counts(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(node.kind.name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Edges by relation; relations that do not occur are left out.
    pub fn edge_counts(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for edge in &self.edges {
            *counts.entry(edge.relation.name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Nodes, by number.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeView<'_>> {
        (0..self.nodes.len()).map(|at| NodeView { graph: self, at })
    }

    /// The node of that number, which must be below [`Self::num_nodes`].
    pub fn node(&self, number: u32) -> NodeView<'_> {
        NodeView { graph: self, at: number as usize }
    }

    /// Edges sorted by `(dst, src, relation)`: the order of the tensors.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// ATT&CK techniques with one sentence a case, sorted; at most three sentences a technique.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<_> = self
            .findings
            .iter()
            .map(|&(technique, node, detail)| Finding {
                technique: technique.id,
                sentence: words::finding(self.node(node), technique, self.text(detail)),
            })
            .collect();
        findings.sort();
        findings.dedup();
        let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
        findings.retain(|f| {
            let n = kept.entry(f.technique).or_default();
            *n += 1;
            *n <= MAX_SENTENCES
        });
        findings
    }

    /// Addresses reached or reached from, earliest first, at most 64.
    pub fn peers(&self) -> Vec<Peer> {
        self.peers.clone()
    }

    /// This endpoint's addresses, sorted, at most 16.
    pub fn local_addresses(&self) -> Vec<String> {
        self.local_addresses.clone()
    }

    /// The first `k` edges of `ranked` with different sentences: numbers of [`Self::edges`] with their weights.
    pub fn key_edges(&self, ranked: &[(u32, f64)], k: usize) -> Vec<KeyEdge> {
        let mut seen = FxHashSet::default();
        let mut edges = Vec::new();
        for &(at, weight) in ranked {
            if edges.len() == k {
                break;
            }
            let edge = &self.edges[at as usize];
            let sentence = words::edge(self, edge);
            if seen.insert(sentence.clone()) {
                edges.push(KeyEdge {
                    sentence,
                    source: words::name(self.node(edge.src)),
                    target: words::name(self.node(edge.dst)),
                    relation: edge.relation.name().to_owned(),
                    first_seen: edge.first_ms,
                    last_seen: edge.last_ms,
                    count: edge.count,
                    weight: weight as f32,
                });
            }
        }
        edges
    }

    /// Signs of suspicion of each process over itself, its ancestors and its descendants, and of each script
    /// over itself: sorted ids, one list per node. What a process's scripts show counts as its own.
    pub fn tree_tokens(&self) -> Vec<Vec<TokenId>> {
        if self.platform == Platform::Linux {
            return features::linux::context(self);
        }
        let mut own: Vec<Vec<TokenId>> = self.nodes().map(|n| n.tokens().filter(|t| t.is_tree()).collect()).collect();
        let mut parents: Vec<Vec<u32>> = vec![Vec::new(); self.nodes.len()];
        for edge in &self.edges {
            let (src, dst) = (edge.src as usize, edge.dst as usize);
            match edge.relation {
                Relation::Spawned if src != dst => parents[dst].push(edge.src),
                Relation::Executed if self.nodes[dst].kind == NodeKind::Script => {
                    let script = own[dst].clone();
                    own[src].extend(script);
                }
                _ => {}
            }
        }
        let mut tree = own.clone();
        for at in 0..self.nodes.len() {
            match self.nodes[at].kind {
                NodeKind::Process => {}
                NodeKind::Script => continue,
                _ => {
                    tree[at].clear();
                    continue;
                }
            }
            if self.nodes[at].bits & bits::HUB != 0 {
                continue;
            }
            // One parent a process (the first in order, should a log claim two): a path, not a fan.
            let (mut child, mut path) = (at, vec![at as u32]);
            while path.len() <= TREE_DEPTH
                && let Some(&parent) = parents[child].first()
                && self.nodes[parent as usize].bits & bits::HUB == 0
                && !path.contains(&parent)
            {
                let parent_at = parent as usize;
                let (up, down) = (own[parent_at].clone(), own[at].clone());
                tree[at].extend(up);
                tree[parent_at].extend(down);
                path.push(parent);
                child = parent_at;
            }
        }
        for tokens in &mut tree {
            tokens.sort_unstable();
            tokens.dedup();
        }
        tree
    }

    fn text(&self, (pane, text): (u16, Text)) -> &str {
        self.texts.get(pane as usize).map_or("", |buffer| text.of(buffer))
    }
}

impl<'a> NodeView<'a> {
    fn node(&self) -> &'a WindowNode {
        &self.graph.nodes[self.at]
    }

    /// What it stands for.
    pub fn kind(&self) -> NodeKind {
        self.node().kind
    }

    /// Program name, path, address: what people call it. Empty where the log does not say.
    pub fn label(&self) -> &'a str {
        self.graph.text(self.node().label)
    }

    /// A process's GUID, as `{9c8ba0f1-...}` in lower case.
    pub fn guid(&self) -> Option<String> {
        let node = self.node();
        (node.bits & bits::GUID != 0).then(|| format_guid(u128::from(node.key[0]) << 64 | u128::from(node.key[1])))
    }

    /// A process's pid.
    pub fn pid(&self) -> Option<u32> {
        Some(self.node().pid).filter(|&pid| pid != NO_PID)
    }

    /// The process was seen to start within the window.
    pub fn created(&self) -> bool {
        self.node().bits & bits::CREATED != 0
    }

    /// Suspicion is not passed on through it.
    pub fn is_hub(&self) -> bool {
        self.node().bits & bits::HUB != 0
    }

    /// First time it took part in something.
    pub fn first_ms(&self) -> TimeMs {
        self.node().first_ms
    }

    /// Last time.
    pub fn last_ms(&self) -> TimeMs {
        self.node().last_ms
    }

    /// A text about it.
    pub fn attribute(&self, attribute: Attribute) -> Option<&'a str> {
        self.graph.attributes.get(&(self.at as u32, attribute)).map(|&text| self.graph.text(text))
    }

    /// Its own tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + use<'a> {
        let start = if self.at == 0 { 0 } else { self.graph.token_ends[self.at - 1] as usize };
        self.graph.tokens[start..self.graph.token_ends[self.at] as usize].iter().map(|&(_, token)| token)
    }
}

/// What the merge needs besides the graph.
#[derive(Default)]
struct Merge<'a> {
    deleted: Option<&'a Deleted>,
    by_key: FxHashMap<(NodeKind, [u64; 2]), u32>,
    by_pid: FxHashMap<u32, u32>,
    /// For each pane the merged numbers of its nodes.
    numbers: Vec<Vec<u32>>,
    deferred: Vec<(u32, u32, u32, u32)>,
    sets: Vec<Vec<TokenId>>,
    peers: Vec<Peer>,
    local: BTreeSet<String>,
}

impl Merge<'_> {
    fn pane(&mut self, graph: &mut WindowGraph, number: u16, pane: &PaneGraph) {
        let time = |offset: u32| pane.base_ms.saturating_add(i64::from(offset));
        let mut renamed = Vec::with_capacity(pane.nodes.len());
        for node in &pane.nodes {
            let at = self.find_or_add(graph, node, time(node.first));
            let merged = &mut graph.nodes[at as usize];
            merged.first_ms = merged.first_ms.min(time(node.first));
            merged.last_ms = merged.last_ms.max(time(node.last));
            merged.bits |= node.bits & !bits::CARRIED;
            if merged.pid == NO_PID {
                merged.pid = node.pid;
            }
            if merged.label.1.len == 0 {
                merged.label = (number, node.label);
            }
            renamed.push(at);
        }
        let node = |old: u32| renamed[old as usize];
        let deleted = self.deleted;
        let hidden = |e: &PaneEdge| deleted.is_some_and(|d| d.edges.contains(&(node(e.src), node(e.dst), e.relation)));
        let mut start = 0;
        for (&at, of) in renamed.iter().zip(&pane.nodes) {
            let tokens = start..of.tokens_end as usize;
            start = tokens.end;
            let shown = |token: &usize| {
                deleted.is_none() || pane.edges.get(pane.token_edges[*token] as usize).is_none_or(|e| !hidden(e))
            };
            graph.tokens.extend(tokens.filter(shown).map(|token| (at, pane.tokens[token])));
        }
        graph.edges.extend(pane.edges.iter().filter(|e| !hidden(e)).map(|e| Edge {
            src: node(e.src),
            dst: node(e.dst),
            relation: e.relation,
            count: e.count,
            first_ms: time(e.first),
            last_ms: time(e.last),
        }));
        let sets_before = self.sets.len() as u32;
        self.sets.extend((0..pane.set_ends.len() as u32).map(|set| pane.set(set).to_vec()));
        self.deferred
            .extend(pane.deferred.iter().map(|d| (node(d.parent), node(d.child), node(d.on), sets_before + d.set)));
        for &(of, attribute, text) in &pane.attributes {
            graph.attributes.entry((node(of), attribute)).or_insert((number, text));
        }
        for finding in &pane.findings {
            let of = node(finding.node);
            if !graph.findings.iter().any(|(t, n, _)| *n == of && std::ptr::eq(*t, finding.technique)) {
                graph.findings.push((finding.technique, of, (number, finding.detail)));
            }
        }
        self.peers.extend(pane.peers.iter().map(|p| Peer {
            local: p.local.map(|l| pane.text(l).to_owned()),
            remote: pane.text(p.remote).to_owned(),
            port: p.port,
            first_seen: time(p.first),
        }));
        self.local.extend(pane.local_addresses.iter().map(|&a| pane.text(a).to_owned()));
        self.numbers.push(renamed);
    }

    fn find_or_add(&mut self, graph: &mut WindowGraph, node: &super::PaneNode, first_ms: TimeMs) -> u32 {
        let known = self.by_key.get(&(node.kind, node.key)).copied();
        let newest = (node.pid != NO_PID && node.kind == NodeKind::Process)
            .then(|| self.by_pid.get(&node.pid).copied())
            .flatten();
        if node.bits & bits::CARRIED != 0
            && let Some(at) = newest
        {
            return at;
        }
        let at = match (known, newest) {
            (Some(at), _) => at,
            // Met before by pid alone, and now with its GUID.
            (None, Some(at))
                if node.bits & bits::GUID != 0
                    && node.bits & bits::CREATED == 0
                    && graph.nodes[at as usize].bits & bits::CARRIED != 0 =>
            {
                let merged = &mut graph.nodes[at as usize];
                self.by_key.remove(&(merged.kind, merged.key));
                merged.key = node.key;
                merged.bits &= !bits::CARRIED;
                self.by_key.insert((node.kind, node.key), at);
                at
            }
            (None, _) => {
                let at = graph.nodes.len() as u32;
                graph.nodes.push(WindowNode {
                    key: node.key,
                    kind: node.kind,
                    bits: node.bits,
                    pid: node.pid,
                    first_ms,
                    last_ms: first_ms,
                    label: (0, Text::default()),
                });
                self.by_key.insert((node.kind, node.key), at);
                at
            }
        };
        if node.pid != NO_PID && (known.is_none() || node.bits & bits::CREATED != 0) {
            self.by_pid.insert(node.pid, at);
        }
        at
    }

    fn finish(mut self, graph: &mut WindowGraph) {
        graph.edges.sort_unstable_by_key(|e| (e.dst, e.src, e.relation));
        graph.edges.dedup_by(|next, kept| {
            let same = (next.dst, next.src, next.relation) == (kept.dst, kept.src, kept.relation);
            if same {
                kept.count = kept.count.saturating_add(next.count);
                kept.first_ms = kept.first_ms.min(next.first_ms);
                kept.last_ms = kept.last_ms.max(next.last_ms);
            }
            same
        });
        self.own_children(graph);
        written_and_run(graph);
        if graph.platform == Platform::Linux {
            let lineage = features::linux::lineage(graph);
            graph.tokens.extend(lineage);
        }
        if let Some(deleted) = self.deleted {
            keep_nodes(graph, &deleted.nodes);
        }

        // A token that is both plain and a sign of suspicion is the latter.
        graph.tokens.sort_unstable_by_key(|&(node, token)| (node, token.id(), !token.is_tree()));
        graph.tokens.dedup_by_key(|(node, token)| (*node, token.id()));
        let mut end = 0;
        for at in 0..graph.nodes.len() {
            end += graph.tokens[end..].iter().take_while(|(n, _)| *n as usize == at).count();
            graph.token_ends.push(end as u32);
        }

        self.peers.sort_by(|a, b| {
            (&a.remote, a.port, &a.local, a.first_seen).cmp(&(&b.remote, b.port, &b.local, b.first_seen))
        });
        self.peers.dedup_by(|b, a| (&a.remote, a.port, &a.local) == (&b.remote, b.port, &b.local));
        self.peers.sort_by(|a, b| (a.first_seen, a).cmp(&(b.first_seen, b)));
        self.peers.truncate(MAX_PEERS);
        graph.peers = self.peers;
        graph.local_addresses = self.local.into_iter().take(MAX_LOCAL_ADDRESSES).collect();
    }

    /// Applies what depends on a process not being the other's parent.
    fn own_children(&mut self, graph: &mut WindowGraph) {
        for &(parent, child, on, set) in &self.deferred {
            let gone = self.deleted.is_some_and(|d| d.edges.contains(&(parent, child, Relation::Performed)));
            if !gone && !has_edge(&graph.edges, parent, child, Relation::Spawned) {
                graph.tokens.extend(self.sets[set as usize].iter().map(|&token| (on, token)));
            }
        }
    }
}

/// Takes the nodes out that are `gone`, which have no edge left; the others keep their order.
fn keep_nodes(graph: &mut WindowGraph, gone: &[bool]) {
    let mut next = 0;
    let number: Vec<u32> = gone
        .iter()
        .map(|gone| {
            if *gone {
                0
            } else {
                next += 1;
                next - 1
            }
        })
        .collect();
    let there = |node: u32| !gone[node as usize];
    let mut at = 0;
    graph.nodes.retain(|_| {
        at += 1;
        there(at - 1)
    });
    graph.edges.iter_mut().for_each(|e| (e.src, e.dst) = (number[e.src as usize], number[e.dst as usize]));
    graph.tokens.retain(|(node, _)| there(*node));
    graph.tokens.iter_mut().for_each(|(node, _)| *node = number[*node as usize]);
    graph.findings.retain(|(_, node, _)| there(*node));
    graph.findings.iter_mut().for_each(|(_, node, _)| *node = number[*node as usize]);
    let attributes = std::mem::take(&mut graph.attributes).into_iter().filter(|((node, _), _)| there(*node));
    graph.attributes = attributes.map(|((node, a), text)| ((number[node as usize], a), text)).collect();
}

fn has_edge(edges: &[Edge], src: u32, dst: u32, relation: Relation) -> bool {
    edges.binary_search_by_key(&(dst, src, relation), |e| (e.dst, e.src, e.relation)).is_ok()
}

/// Flags the writer and the runner of every file that was written before it was last run.
fn written_and_run(graph: &mut WindowGraph) {
    let mut flags = Vec::new();
    for into in graph.edges.chunk_by(|a, b| a.dst == b.dst) {
        if graph.nodes[into[0].dst as usize].kind != NodeKind::File {
            continue;
        }
        for run in into.iter().filter(|e| e.relation == Relation::Executed) {
            for write in into.iter().filter(|e| e.relation == Relation::Wrote && e.first_ms <= run.last_ms) {
                flags.push((run.src, TokenId::new(RAN_WRITTEN, true)));
                flags.push((write.src, TokenId::new(WROTE_RUN, true)));
            }
        }
    }
    graph.tokens.extend(flags);
}
