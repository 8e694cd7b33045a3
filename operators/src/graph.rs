//! What an endpoint did, as a graph: sealed once per pane, merged per window.
//!
//! - Input: the observations of one pane (one hop, 30 s) in [`Observation::order`].
//! - Output: a [`PaneGraph`]: nodes, edges with counts and times, tokens as 15-bit ids, the few texts that
//!   sentences need. Up to six of them merge into a [`WindowGraph`] (see [`window`]).
//! - State: none; a [`PaneBuilder`] lives while one pane is sealed.
//! - Ordering: the result is a function of the sequence of observations. Nodes are numbered by first
//!   appearance, so a window's nodes come out in the same order wherever its panes were cut.
//! - Failure: none. Fields that make no sense are left out; no observation makes the builder panic.
//!
//! An event is parsed and featurized here and never again, though it lies in six windows. What a pane alone
//! cannot know (a process created in an earlier pane, a file written there and run here) is left as a marked
//! fact and decided at the merge.
//!
//! A process is its GUID where the log gives one, else an instance of its pid: `(pid, start)` where the start
//! was seen, "carried in" where it was not. A carried-in instance is the newest process with that pid among
//! the earlier panes of the window, if there is one.

pub mod occlusion;
#[cfg(test)]
pub(crate) mod tests;
pub mod window;
mod words;

use logster_schema::{Observation, Platform, TimeMs};
use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub use window::{Edge, Finding, NodeView, WindowGraph};

use crate::features::{self, TokenId};

/// What a node stands for. The number is the model's `node_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum NodeKind {
    /// A running program.
    Process = 0,
    /// A file, or a directory's worth of ordinary system libraries.
    File = 1,
    /// A script block or a script file that was interpreted.
    Script = 2,
    /// A remote address with port, or a name that was looked up.
    Network = 3,
    /// A kind of request to the operating system: a registry area, a pipe, a handle, a system call.
    Syscall = 4,
}

impl NodeKind {
    /// All kinds, by number.
    pub const ALL: [Self; 5] = [Self::Process, Self::File, Self::Script, Self::Network, Self::Syscall];

    /// As in results: `process`, `file`, `script`, `network`, `syscall`.
    pub const fn name(self) -> &'static str {
        ["process", "file", "script", "network", "syscall"][self as usize]
    }
}

/// What an edge says. The number is the model's `edge_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Relation {
    /// Process to the process it created.
    Spawned = 0,
    /// Process to a file it created, changed or deleted.
    Wrote = 1,
    /// Process to its script, its image file or a library it loaded.
    Executed = 2,
    /// Process to a peer, in either direction, or to a name.
    ConnectedTo = 3,
    /// Process to a request, or to the process on which it was performed.
    Performed = 4,
}

impl Relation {
    /// All relations, by number.
    pub const ALL: [Self; 5] = [Self::Spawned, Self::Wrote, Self::Executed, Self::ConnectedTo, Self::Performed];

    /// As in results: `spawned`, `wrote`, `executed`, `connected-to`, `performed`.
    pub const fn name(self) -> &'static str {
        ["spawned", "wrote", "executed", "connected-to", "performed"][self as usize]
    }
}

/// A text about a node that sentences may use. The first one given stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Attribute {
    /// Command line.
    Command = 0,
    /// Account.
    User = 1,
    /// Windows integrity level, or what else qualifies a process.
    Integrity = 2,
    /// One concrete case of what the node sums up: a registry key, a pipe's name.
    Example = 3,
    /// A process's program as a class: what pairs of parent and child are made of.
    Program = 4,
}

/// An ATT&CK technique as the built-in analyzer reports it. Tables of these are `static`.
#[derive(Debug, PartialEq, Eq)]
pub struct Technique {
    /// `T1003.001`.
    pub id: &'static str,
    /// What the process did, following its name: `read the memory of LSASS`.
    pub did: &'static str,
}

/// A node of the pane being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// A set of tokens kept once per pane, however many nodes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetId(u32);

/// Longest text kept of a label or an attribute, in bytes.
const MAX_TEXT_BYTES: usize = 240;
/// Nodes of a pane beyond which new ones are not taken: bounds a window's graph against floods.
const MAX_NODES: usize = 20_000;
/// Findings, peers and addresses kept per pane.
const MAX_FACTS: usize = 256;

/// A text within the pane's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Text {
    at: u32,
    len: u16,
}

impl Text {
    fn of<'a>(&self, buffer: &'a str) -> &'a str {
        &buffer[self.at as usize..self.at as usize + self.len as usize]
    }
}

/// Bits of a node.
mod bits {
    /// The process was seen to start.
    pub const CREATED: u8 = 1;
    /// A pid-only instance that started before the pane.
    pub const CARRIED: u8 = 2;
    /// The key is a GUID.
    pub const GUID: u8 = 4;
    /// Suspicion is not passed on through this process.
    pub const HUB: u8 = 8;
}

const NO_PID: u32 = u32::MAX;
/// The edge of a token that came with none.
const NO_EDGE: u16 = u16::MAX;

#[derive(Clone, Debug)]
struct PaneNode {
    /// GUID, or a 128-bit hash of kind and identity. Two halves, for alignment's sake.
    key: [u64; 2],
    /// Times since the pane's base.
    first: u32,
    last: u32,
    label: Text,
    kind: NodeKind,
    bits: u8,
    pid: u32,
    /// End of its tokens; they start at the previous node's end.
    tokens_end: u32,
}

#[derive(Clone, Copy, Debug)]
struct PaneEdge {
    src: u32,
    dst: u32,
    count: u32,
    first: u32,
    last: u32,
    relation: Relation,
}

/// Tokens that hold unless `parent` turns out to have spawned `child` (within the window).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Deferred {
    parent: u32,
    child: u32,
    on: u32,
    set: u32,
}

#[derive(Clone, Copy, Debug)]
struct PaneFinding {
    technique: &'static Technique,
    node: u32,
    detail: Text,
}

#[derive(Clone, Copy, Debug)]
struct PanePeer {
    local: Option<Text>,
    remote: Text,
    port: u16,
    first: u32,
}

/// The graph of one pane, sealed: compact and immutable.
#[derive(Clone, Debug)]
pub struct PaneGraph {
    base_ms: TimeMs,
    events: u32,
    nodes: Box<[PaneNode]>,
    edges: Box<[PaneEdge]>,
    tokens: Box<[TokenId]>,
    /// For each token the edge whose event showed it first, by number, or [`NO_EDGE`].
    token_edges: Box<[u16]>,
    /// Flat token sets of `deferred`, with their ends.
    sets: Box<[TokenId]>,
    set_ends: Box<[u32]>,
    deferred: Box<[Deferred]>,
    attributes: Box<[(u32, Attribute, Text)]>,
    findings: Box<[PaneFinding]>,
    peers: Box<[PanePeer]>,
    local_addresses: Box<[Text]>,
    text: std::sync::Arc<str>,
}

impl PaneGraph {
    /// Builds the graph of a pane's observations, which come sorted by [`Observation::order`].
    pub fn seal(platform: Platform, observations: &[Observation]) -> Self {
        let mut pane = PaneBuilder::new();
        match platform {
            Platform::Windows => features::windows::build(&mut pane, observations),
            Platform::Linux => features::linux::build(&mut pane, observations),
        }
        pane.finish(observations.len())
    }

    /// Observations that were sealed.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.nodes)
            + size_of_val(&*self.edges)
            + size_of_val(&*self.tokens)
            + size_of_val(&*self.token_edges)
            + size_of_val(&*self.sets)
            + size_of_val(&*self.set_ends)
            + size_of_val(&*self.deferred)
            + size_of_val(&*self.attributes)
            + size_of_val(&*self.findings)
            + size_of_val(&*self.peers)
            + size_of_val(&*self.local_addresses)
            + self.text.len()
    }

    fn text(&self, text: Text) -> &str {
        text.of(&self.text)
    }

    fn set(&self, set: u32) -> &[TokenId] {
        let start = if set == 0 { 0 } else { self.set_ends[set as usize - 1] as usize };
        &self.sets[start..self.set_ends[set as usize] as usize]
    }
}

/// Collects one pane's nodes, edges and facts. Both platforms' features emit through this.
///
/// Call [`PaneBuilder::at`] before the calls of each observation, with its time.
pub struct PaneBuilder {
    base_ms: Option<TimeMs>,
    now: u32,
    nodes: Vec<PaneNode>,
    by_key: FxHashMap<(NodeKind, [u64; 2]), u32>,
    /// The newest process of each pid.
    by_pid: FxHashMap<u32, u32>,
    edges: Vec<PaneEdge>,
    by_edge: FxHashMap<(u32, u32, Relation), u32>,
    set_tokens: Vec<TokenId>,
    set_ends: Vec<u32>,
    by_set: FxHashMap<Box<[TokenId]>, u32>,
    /// Node and set, once each, with the observation that showed it first.
    applied: FxHashMap<(u32, u32), u32>,
    /// Node and single token, likewise.
    single: FxHashMap<(u32, TokenId), u32>,
    /// Edges that each observation added or counted: where an observation's begin, and whose they are.
    observations: Vec<u32>,
    touched: Vec<u32>,
    deferred: Vec<Deferred>,
    deferred_seen: FxHashSet<Deferred>,
    attributes: FxHashMap<(u32, Attribute), Text>,
    findings: Vec<PaneFinding>,
    peers: Vec<PanePeer>,
    local_addresses: Vec<Text>,
    text: String,
    by_text: FxHashMap<u64, Text>,
}

impl PaneBuilder {
    /// An empty pane.
    pub(crate) fn new() -> Self {
        Self {
            base_ms: None,
            now: 0,
            nodes: Vec::new(),
            by_key: FxHashMap::default(),
            by_pid: FxHashMap::default(),
            edges: Vec::new(),
            by_edge: FxHashMap::default(),
            set_tokens: Vec::new(),
            set_ends: Vec::new(),
            by_set: FxHashMap::default(),
            applied: FxHashMap::default(),
            single: FxHashMap::default(),
            observations: Vec::new(),
            touched: Vec::new(),
            deferred: Vec::new(),
            deferred_seen: FxHashSet::default(),
            attributes: FxHashMap::default(),
            findings: Vec::new(),
            peers: Vec::new(),
            local_addresses: Vec::new(),
            text: String::new(),
            by_text: FxHashMap::default(),
        }
    }

    /// Sets the time of what follows, in event time. Earlier than the first call's counts as that.
    pub fn at(&mut self, time_ms: TimeMs) {
        let base = *self.base_ms.get_or_insert(time_ms);
        self.now = u32::try_from(time_ms.saturating_sub(base).max(0)).unwrap_or(u32::MAX);
        self.observations.push(self.touched.len() as u32);
    }

    /// The observation whose calls these are, counted from 1.
    fn observation(&self) -> u32 {
        self.observations.len() as u32
    }

    /// The node of this kind and identity; made on first sight. An empty `label` may be given later.
    ///
    /// Not for processes: they come from [`Self::process_by_guid`] and its like.
    pub fn node(&mut self, kind: NodeKind, identity: &str, label: &str) -> NodeId {
        let hash = xxh3_128(identity.as_bytes());
        let node = self.keyed(kind, [(hash >> 64) as u64, hash as u64], 0, NO_PID);
        self.label(node, label);
        node
    }

    /// The process with this GUID (see [`parse_guid`]). `created`: this very event reports its start.
    pub fn process_by_guid(&mut self, guid: u128, pid: Option<u32>, created: bool) -> NodeId {
        let key = [(guid >> 64) as u64, guid as u64];
        let pid = pid.unwrap_or(NO_PID);
        let known = self.by_key.get(&(NodeKind::Process, key)).copied();
        if known.is_none() && !created && pid != NO_PID {
            // The same process, met before by pid alone: it takes the GUID.
            if let Some(&at) = self.by_pid.get(&pid)
                && self.nodes[at as usize].bits & bits::CARRIED != 0
            {
                let node = &mut self.nodes[at as usize];
                self.by_key.remove(&(NodeKind::Process, node.key));
                node.key = key;
                node.bits = node.bits & !bits::CARRIED | bits::GUID;
                self.by_key.insert((NodeKind::Process, key), at);
            }
        }
        let node = self.keyed(NodeKind::Process, key, bits::GUID | (u8::from(created) * bits::CREATED), pid);
        if pid != NO_PID && (known.is_none() || created) {
            self.by_pid.insert(pid, node.0);
        }
        node
    }

    /// A process that starts now under `pid`: later calls of [`Self::process_by_pid`] mean this one.
    pub fn process_started(&mut self, pid: u32) -> NodeId {
        let start = self.base_ms.unwrap_or(0).saturating_add(i64::from(self.now));
        let node = self.keyed(NodeKind::Process, [u64::from(pid) | 1 << 63, start as u64], bits::CREATED, pid);
        self.by_pid.insert(pid, node.0);
        node
    }

    /// The newest process with `pid`, or one that was carried in from before the pane.
    pub fn process_by_pid(&mut self, pid: u32) -> NodeId {
        if let Some(&at) = self.by_pid.get(&pid) {
            self.touch(at);
            return NodeId(at);
        }
        let node = self.keyed(NodeKind::Process, [u64::from(pid) | 1 << 62, 0], bits::CARRIED, pid);
        self.by_pid.insert(pid, node.0);
        node
    }

    fn keyed(&mut self, kind: NodeKind, key: [u64; 2], bits: u8, pid: u32) -> NodeId {
        let full = self.nodes.len() >= MAX_NODES;
        let at = match self.by_key.get(&(kind, key)) {
            Some(&at) => at,
            // Over the limit, further nodes of a kind share one.
            None if full => {
                let overflow = [u64::MAX, u64::MAX];
                let at = *self.by_key.entry((kind, overflow)).or_insert(self.nodes.len() as u32);
                if at as usize == self.nodes.len() {
                    self.push(kind, overflow);
                }
                at
            }
            None => {
                let at = self.nodes.len() as u32;
                self.by_key.insert((kind, key), at);
                self.push(kind, key);
                at
            }
        };
        self.touch(at);
        let node = &mut self.nodes[at as usize];
        node.bits |= bits;
        if node.pid == NO_PID {
            node.pid = pid;
        }
        NodeId(at)
    }

    fn push(&mut self, kind: NodeKind, key: [u64; 2]) {
        let (first, last) = (self.now, self.now);
        self.nodes.push(PaneNode {
            key,
            first,
            last,
            label: Text::default(),
            kind,
            bits: 0,
            pid: NO_PID,
            tokens_end: 0,
        });
    }

    fn touch(&mut self, at: u32) {
        let node = &mut self.nodes[at as usize];
        node.first = node.first.min(self.now);
        node.last = node.last.max(self.now);
    }

    /// What people call the node: a process's program name, a file's path. The first non-empty one stays.
    pub fn label(&mut self, node: NodeId, label: &str) {
        if self.nodes[node.0 as usize].label.len == 0 && !label.is_empty() {
            self.nodes[node.0 as usize].label = self.intern(label);
        }
    }

    /// Whether the node has a label already.
    pub fn has_label(&self, node: NodeId) -> bool {
        self.nodes[node.0 as usize].label.len != 0
    }

    /// Suspicion neither climbs nor descends through this process: it starts unrelated programs.
    pub fn hub(&mut self, node: NodeId) {
        self.nodes[node.0 as usize].bits |= bits::HUB;
    }

    /// Gives the node a text for sentences; the first one of an attribute stays.
    pub fn attribute(&mut self, node: NodeId, attribute: Attribute, text: &str) {
        if !text.is_empty() && !self.attributes.contains_key(&(node.0, attribute)) {
            let text = self.intern(text);
            self.attributes.insert((node.0, attribute), text);
        }
    }

    /// Adds a token that describes the node itself: `img:powershell`. Masked or from a closed list.
    pub fn token(&mut self, node: NodeId, token: &str) {
        let now = self.observation();
        self.single.entry((node.0, TokenId::new(token, false))).or_insert(now);
    }

    /// Adds a sign of suspicion: it counts for the node's ancestors and descendants too.
    pub fn flag(&mut self, node: NodeId, flag: &str) {
        let now = self.observation();
        self.single.entry((node.0, TokenId::new(flag, true))).or_insert(now);
    }

    /// Keeps a set of tokens, to be applied many times.
    pub fn set(&mut self, mut tokens: Vec<TokenId>) -> SetId {
        tokens.sort_unstable();
        tokens.dedup();
        if let Some(&id) = self.by_set.get(&*tokens) {
            return SetId(id);
        }
        let id = self.set_ends.len() as u32;
        self.set_tokens.extend_from_slice(&tokens);
        self.set_ends.push(self.set_tokens.len() as u32);
        self.by_set.insert(tokens.into(), id);
        SetId(id)
    }

    /// Adds a set to a node.
    pub fn apply(&mut self, node: NodeId, set: SetId) {
        let now = self.observation();
        self.applied.entry((node.0, set.0)).or_insert(now);
    }

    /// Adds a set to `on`, unless `parent` spawned `child` somewhere in the window.
    pub fn apply_unless_spawned(&mut self, parent: NodeId, child: NodeId, on: NodeId, set: SetId) {
        let fact = Deferred { parent: parent.0, child: child.0, on: on.0, set: set.0 };
        if self.deferred_seen.insert(fact) {
            self.deferred.push(fact);
        }
    }

    /// Adds an edge at the current time, or counts it again.
    pub fn edge(&mut self, src: NodeId, dst: NodeId, relation: Relation) {
        let next = self.edges.len() as u32;
        let at = *self.by_edge.entry((src.0, dst.0, relation)).or_insert(next);
        if at == next {
            let (first, last) = (self.now, self.now);
            self.edges.push(PaneEdge { src: src.0, dst: dst.0, count: 0, first, last, relation });
        }
        self.touch(src.0);
        self.touch(dst.0);
        self.touched.push(at);
        let edge = &mut self.edges[at as usize];
        edge.count = edge.count.saturating_add(1);
        edge.first = edge.first.min(self.now);
        edge.last = edge.last.max(self.now);
    }

    /// Notes an ATT&CK technique that the process showed; `detail` is what it did it to or with.
    pub fn finding(&mut self, node: NodeId, technique: &'static Technique, detail: &str) {
        let known = self.findings.iter().any(|f| f.node == node.0 && std::ptr::eq(f.technique, technique));
        if !known && self.findings.len() < MAX_FACTS {
            let detail = self.intern(detail);
            self.findings.push(PaneFinding { technique, node: node.0, detail });
        }
    }

    /// Notes a peer. `port` is the remote one; `local` this endpoint's address, where the log names it.
    pub fn peer(&mut self, local: Option<&str>, remote: &str, port: u16) {
        let local = local.filter(|l| !l.is_empty()).map(|l| self.intern(l));
        let remote = self.intern(remote);
        let known = self.peers.iter().any(|p| p.local == local && p.remote == remote && p.port == port);
        if !known && self.peers.len() < MAX_FACTS {
            let first = self.now;
            self.peers.push(PanePeer { local, remote, port, first });
        }
    }

    /// Notes an address of this endpoint (loopback excluded by the caller).
    pub fn local_address(&mut self, address: &str) {
        let address = self.intern(address);
        if !self.local_addresses.contains(&address) && self.local_addresses.len() < MAX_FACTS {
            self.local_addresses.push(address);
        }
    }

    fn intern(&mut self, text: &str) -> Text {
        let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
        let hash = xxh3_64(text.as_bytes());
        if let Some(known) = self.by_text.get(&hash)
            && known.of(&self.text) == text
        {
            return *known;
        }
        let kept = Text { at: self.text.len() as u32, len: text.len() as u16 };
        self.text.push_str(text);
        self.by_text.insert(hash, kept);
        kept
    }

    /// Seals the pane of `events` observations.
    pub(crate) fn finish(self, events: usize) -> PaneGraph {
        let mut tokens: Vec<(u32, TokenId, u32)> = self.single.into_iter().map(|((n, t), at)| (n, t, at)).collect();
        for (&(node, set), &at) in &self.applied {
            let start = if set == 0 { 0 } else { self.set_ends[set as usize - 1] as usize };
            tokens.extend(self.set_tokens[start..self.set_ends[set as usize] as usize].iter().map(|&t| (node, t, at)));
        }
        tokens.sort_unstable();
        tokens.dedup_by_key(|&mut (node, token, _)| (node, token));
        let token_edges = tokens.iter().map(|&(node, _, at)| {
            let from = at.checked_sub(1).map_or(0, |at| self.observations[at as usize]) as usize;
            let to = self.observations.get(at as usize).map_or(self.touched.len(), |&end| end as usize);
            let mut edges = self.touched[from..to].iter();
            let edge = edges.find(|&&e| self.edges[e as usize].src == node || self.edges[e as usize].dst == node);
            edge.and_then(|&edge| u16::try_from(edge).ok()).unwrap_or(NO_EDGE)
        });
        let token_edges = token_edges.collect();
        let mut nodes = self.nodes;
        let mut end = 0;
        for (at, node) in nodes.iter_mut().enumerate() {
            end += tokens[end..].iter().take_while(|(n, ..)| *n as usize == at).count();
            node.tokens_end = end as u32;
        }
        // Only sets that a deferred fact needs stay.
        let mut kept = FxHashMap::default();
        let (mut sets, mut set_ends) = (Vec::new(), Vec::new());
        let mut deferred = self.deferred;
        for fact in &mut deferred {
            fact.set = *kept.entry(fact.set).or_insert_with(|| {
                let start = if fact.set == 0 { 0 } else { self.set_ends[fact.set as usize - 1] as usize };
                sets.extend_from_slice(&self.set_tokens[start..self.set_ends[fact.set as usize] as usize]);
                set_ends.push(sets.len() as u32);
                set_ends.len() as u32 - 1
            });
        }
        let mut attributes: Vec<_> = self.attributes.into_iter().map(|((n, a), t)| (n, a, t)).collect();
        attributes.sort_unstable_by_key(|&(n, a, _)| (n, a));
        PaneGraph {
            base_ms: self.base_ms.unwrap_or(0),
            events: u32::try_from(events).unwrap_or(u32::MAX),
            nodes: nodes.into(),
            edges: self.edges.into(),
            tokens: tokens.into_iter().map(|(_, t, _)| t).collect(),
            token_edges,
            sets: sets.into(),
            set_ends: set_ends.into(),
            deferred: deferred.into(),
            attributes: attributes.into(),
            findings: self.findings.into(),
            peers: self.peers.into(),
            local_addresses: self.local_addresses.into(),
            text: self.text.into(),
        }
    }
}

/// Reads `{9C8BA0F1-...}` in either case, with or without braces. All zeros is no GUID.
pub fn parse_guid(text: &str) -> Option<u128> {
    let (mut value, mut digits) = (0u128, 0);
    for byte in text.bytes() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'{' | b'}' | b'-' => continue,
            _ => return None,
        };
        if digits == 32 {
            return None;
        }
        value = value << 4 | u128::from(digit);
        digits += 1;
    }
    (digits == 32 && value != 0).then_some(value)
}

/// `{9c8ba0f1-0000-0000-0000-000000000000}`, lower case.
pub fn format_guid(guid: u128) -> String {
    let h = format!("{guid:032x}");
    format!("{{{}-{}-{}-{}-{}}}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}
