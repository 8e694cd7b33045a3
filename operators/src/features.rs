//! The one feature specification: what of a graph the model is given, bit for bit.
//!
//! - Input: window graphs, each already carrying its nodes' tokens.
//! - Output: [`Tensors`] of their disjoint union, for training and scoring alike.
//! - Ordering: graphs in the order given; within one, nodes by number and edges by `(dst, src, relation)`.
//! - Failure: none; an empty graph has no rows but its row of `graph_feat`.
//!
//! Tokens come from closed vocabularies (classes, names of programs and libraries that every system has, signs
//! of suspicion), so that a model cannot learn a lab's host, user or tool names. An id is FNV-1a-64 of
//! `ns:text`, modulo 32,768. Numbers are integers put through [`scaled_log2`], which is exact in `f32`: no
//! library's logarithm and no processor's rounding comes into it.
//!
//! Any change of a token, a number or their order is a new [`FEATURE_VERSION`]; golden vectors hold it fast.

pub mod audit;
pub mod linux;
pub mod windows;

use crate::graph::{NodeKind, Relation, WindowGraph};

/// Names this specification in model packages. A package trained on another is refused.
pub const FEATURE_VERSION: &str = "logster-features-4";
/// Number of different token ids.
pub const TOKEN_IDS: u64 = 32_768;
/// Columns of `node_feat`.
pub const NODE_FEATURES: usize = 16;
/// Columns of `edge_feat`.
pub const EDGE_FEATURES: usize = 8;
/// Columns of `graph_feat`.
pub const GRAPH_FEATURES: usize = 8;

/// A token: 15 bits of id, and whether it is a sign of suspicion that relatives share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(u16);

impl TokenId {
    const TREE: u16 = 0x8000;

    /// The token of `ns:text`; `tree`: it counts for ancestors and descendants too.
    pub fn new(text: &str, tree: bool) -> Self {
        Self::joined(&[text], tree)
    }

    /// The token of the joined parts.
    pub fn joined(parts: &[&str], tree: bool) -> Self {
        Self::joined_after("", parts, tree)
    }

    /// The token of `prefix` and the joined parts.
    pub fn joined_after(prefix: &str, parts: &[&str], tree: bool) -> Self {
        let hash = parts.iter().fold(fnv1a64(FNV_BASIS, prefix.as_bytes()), |h, p| fnv1a64(h, p.as_bytes()));
        Self((hash % TOKEN_IDS) as u16 | if tree { Self::TREE } else { 0 })
    }

    /// The id, 0 to 32,767.
    pub fn id(self) -> i64 {
        i64::from(self.0 & !Self::TREE)
    }

    /// A sign of suspicion.
    pub fn is_tree(self) -> bool {
        self.0 & Self::TREE != 0
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, continued from `hash`.
fn fnv1a64(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The model's inputs for some graphs, as one disjoint union. Matrices are row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    /// `[N]` [`NodeKind`] as a number.
    pub node_type: Vec<i64>,
    /// `[N, 16]`: log2 of neighbours per relation, out and in (spawned, wrote, executed, connected-to,
    /// performed: columns 0 to 9); log2 of events at the node (10); first time (11) and span (12) as shares of
    /// the window; entropy (13) and length (14) of the label; log2 of signs of suspicion (15).
    pub node_feat: Vec<f32>,
    /// `[T]` own tokens, ascending within a node.
    pub tok_id: Vec<i64>,
    /// `[T]` whose.
    pub tok_node: Vec<i64>,
    /// `[U]` signs of suspicion over self, ancestors and descendants; for processes and, of themselves, scripts.
    pub tree_id: Vec<i64>,
    /// `[U]` whose.
    pub tree_node: Vec<i64>,
    /// `[E]` sources.
    pub edge_src: Vec<i64>,
    /// `[E]` targets, ascending.
    pub edge_dst: Vec<i64>,
    /// `[E]` [`Relation`] as a number.
    pub edge_type: Vec<i64>,
    /// `[E, 8]`: log2 of the count (0); first time (1), last time (2) and span (3) as shares of the window;
    /// log2 of the source's neighbours (4) and of the target's (5) under this relation; log2 of the signs of
    /// suspicion on the source (6) and on the target (7).
    pub edge_feat: Vec<f32>,
    /// `[N]` which graph.
    pub node_graph: Vec<i64>,
    /// `[B, 8]`: log2 of nodes (0), edges (1), events (2), processes (3), files (4), scripts (5), network nodes
    /// (6); sixths of the window with events (7).
    pub graph_feat: Vec<f32>,
}

impl Tensors {
    /// Nodes, N.
    pub fn num_nodes(&self) -> usize {
        self.node_type.len()
    }

    /// Edges, E.
    pub fn num_edges(&self) -> usize {
        self.edge_src.len()
    }

    /// Graphs, B.
    pub fn num_graphs(&self) -> usize {
        self.graph_feat.len() / GRAPH_FEATURES
    }
}

/// The model's inputs for `graphs`.
pub fn tensors(graphs: &[&WindowGraph]) -> Tensors {
    let mut t = Tensors::default();
    for (number, graph) in graphs.iter().enumerate() {
        append(&mut t, number as i64, graph);
    }
    t
}

fn append(t: &mut Tensors, number: i64, graph: &WindowGraph) {
    let base = t.node_type.len() as i64;
    let nodes = graph.num_nodes() as usize;
    let share = |ms: i64| {
        let width = (graph.end_ms() - graph.start_ms()).max(1);
        // Thousandths, so that the quotient of two integers is all that is rounded.
        (ms.clamp(0, width) as i128 * 1000 / width as i128) as f32 / 1000.0
    };

    // Neighbours by relation and direction, and events, of each node.
    let mut neighbours = vec![[0u32; 10]; nodes];
    let mut events = vec![0u32; nodes];
    for edge in graph.edges() {
        let (src, dst, column) = (edge.src as usize, edge.dst as usize, edge.relation as usize * 2);
        neighbours[src][column] += 1;
        neighbours[dst][column + 1] += 1;
        events[src] = events[src].saturating_add(edge.count);
        events[dst] = events[dst].saturating_add(edge.count);
    }
    let mut suspicion = vec![0u32; nodes];

    let tree = graph.tree_tokens();
    for (at, node) in graph.nodes().enumerate() {
        let row = base + at as i64;
        t.node_type.push(node.kind() as i64);
        t.node_graph.push(number);
        for token in node.tokens() {
            t.tok_id.push(token.id());
            t.tok_node.push(row);
            suspicion[at] += u32::from(token.is_tree());
        }
        for token in &tree[at] {
            t.tree_id.push(token.id());
            t.tree_node.push(row);
        }
        t.node_feat.extend(neighbours[at].map(scaled_log2));
        t.node_feat.push(scaled_log2(events[at]));
        t.node_feat.push(share(node.first_ms() - graph.start_ms()));
        t.node_feat.push(share(node.last_ms() - node.first_ms()));
        t.node_feat.push(entropy_class(node.label()));
        t.node_feat.push(scaled_log2(node.label().len() as u32));
        t.node_feat.push(scaled_log2(suspicion[at]));
    }
    for edge in graph.edges() {
        let (src, dst, column) = (edge.src as usize, edge.dst as usize, edge.relation as usize * 2);
        t.edge_src.push(base + i64::from(edge.src));
        t.edge_dst.push(base + i64::from(edge.dst));
        t.edge_type.push(edge.relation as i64);
        t.edge_feat.extend([
            scaled_log2(edge.count),
            share(edge.first_ms - graph.start_ms()),
            share(edge.last_ms - graph.start_ms()),
            share(edge.last_ms - edge.first_ms),
            scaled_log2(neighbours[src][column]),
            scaled_log2(neighbours[dst][column + 1]),
            scaled_log2(suspicion[src]),
            scaled_log2(suspicion[dst]),
        ]);
    }
    t.graph_feat.extend(graph_features(graph));
    debug_assert_eq!(Relation::ALL.len() * 2, 10);
}

/// A graph's row of `graph_feat`.
pub fn graph_features(graph: &WindowGraph) -> [f32; GRAPH_FEATURES] {
    let mut kinds = [0u32; NodeKind::ALL.len()];
    graph.nodes().for_each(|node| kinds[node.kind() as usize] += 1);
    [
        scaled_log2(graph.num_nodes()),
        scaled_log2(graph.num_edges()),
        scaled_log2(graph.events()),
        scaled_log2(kinds[NodeKind::Process as usize]),
        scaled_log2(kinds[NodeKind::File as usize]),
        scaled_log2(kinds[NodeKind::Script as usize]),
        scaled_log2(kinds[NodeKind::Network as usize]),
        graph.active_panes().min(6) as f32 / 6.0,
    ]
}

/// `log2(1 + n) / 8`, linear between powers of two: a multiple of 2^-23 at most, so exact in `f32`.
/// `n` is capped at 2^20.
fn scaled_log2(n: u32) -> f32 {
    let m = n.min(1 << 20) + 1;
    let power = m.ilog2();
    let fraction = (m - (1 << power)) as f32 / (1u32 << power) as f32;
    (power as f32 + fraction) / 8.0
}

/// How evenly the last component of a path or name uses its characters, in eighths: 0 for `aaaa`, towards 1
/// for random text. Counted in integers: distinct characters per length, for 4 bytes and more.
fn entropy_class(label: &str) -> f32 {
    let base = label.rsplit(['\\', '/']).next().unwrap_or_default().as_bytes();
    if base.len() < 4 {
        return 0.0;
    }
    let mut seen = [false; 256];
    base.iter().for_each(|&b| seen[b.to_ascii_lowercase() as usize] = true);
    let distinct = seen.iter().filter(|&&s| s).count();
    (distinct * 8 / base.len().min(32)).min(8) as f32 / 8.0
}
