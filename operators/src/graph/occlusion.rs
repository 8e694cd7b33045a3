//! A window without some of its edges, and without what hangs on them: how much an edge matters is what its
//! deletion changes.
//!
//! - Input: a window's graph with its panes, and edges of it.
//! - Output: the graph that the panes would have merged into had the edges' events not been logged.
//! - State: none.
//! - Ordering: the nodes and edges that stay keep their order.
//! - Failure: none.
//!
//! With an edge go the tokens that its events showed, on either end, unless another pane shows them by another
//! edge. With the start of a process goes the process: all it did, and all it started in turn. A node that
//! loses its last edge goes too. Tokens made of several edges (written and run, lineage) are made anew from what stays.
//! A pane keeps of each token only the first edge, so a token that a second edge of the pane shows too goes with the first.
//!
//! A busy window costs too much to be scored dozens of times, and a verdict rests on a few of its processes: [`core`] makes
//! panes of these and of what is around them alone.

use rustc_hash::FxHashSet;

use super::{Deferred, NO_EDGE, PaneEdge, PaneGraph, PaneNode, Relation, WindowGraph};

/// What a merge leaves out, by numbers of the whole graph.
pub(super) struct Deleted {
    pub(super) edges: FxHashSet<(u32, u32, Relation)>,
    /// One a node.
    pub(super) nodes: Vec<bool>,
}

/// A window from which edges can be deleted.
#[derive(Clone, Copy)]
pub struct Occlusion<'a> {
    graph: &'a WindowGraph,
    panes: &'a [&'a PaneGraph],
}

/// What is left of a window.
pub struct Remainder {
    /// The graph.
    pub graph: WindowGraph,
    /// For each of its nodes the number in the whole graph, ascending.
    pub nodes: Vec<u32>,
    /// For each edge of the whole graph whether it is still there.
    pub edges: Vec<bool>,
}

impl<'a> Occlusion<'a> {
    /// `graph` is the merge of `panes`.
    pub fn new(graph: &'a WindowGraph, panes: &'a [&'a PaneGraph]) -> Self {
        Self { graph, panes }
    }

    /// The whole graph.
    pub fn graph(&self) -> &'a WindowGraph {
        self.graph
    }

    /// The window without `edges`, numbers of [`WindowGraph::edges`].
    pub fn without(&self, edges: &[u32]) -> Remainder {
        let all = self.graph.edges();
        let mut there = vec![true; all.len()];
        let mut dead = vec![false; self.graph.num_nodes() as usize];
        let mut started: Vec<u32> = Vec::new();
        for &at in edges {
            let edge = &all[at as usize];
            there[at as usize] = false;
            if edge.relation == Relation::Spawned && edge.src != edge.dst {
                started.push(edge.dst);
            }
        }
        while let Some(process) = started.pop() {
            if std::mem::replace(&mut dead[process as usize], true) {
                continue;
            }
            for (at, edge) in all.iter().enumerate().filter(|(_, e)| e.src == process || e.dst == process) {
                there[at] = false;
                if edge.relation == Relation::Spawned && edge.src == process {
                    started.push(edge.dst);
                }
            }
        }
        let mut before = vec![false; dead.len()];
        let mut after = vec![false; dead.len()];
        for (edge, there) in all.iter().zip(&there) {
            for end in [edge.src, edge.dst] {
                before[end as usize] = true;
                after[end as usize] |= *there;
            }
        }
        let gone: Vec<bool> = before.iter().zip(&after).map(|(before, after)| *before && !*after).collect();
        let hidden = all.iter().zip(&there).filter(|(_, there)| !**there);
        let deleted = Deleted { edges: hidden.map(|(e, _)| (e.src, e.dst, e.relation)).collect(), nodes: gone };
        let g = self.graph;
        let (graph, _) = WindowGraph::merge_without(g.platform(), g.start_ms(), g.end_ms(), self.panes, Some(&deleted));
        let nodes = (0..g.num_nodes()).filter(|at| !deleted.nodes[*at as usize]).collect();
        Remainder { graph, nodes, edges: there }
    }
}

/// The panes of a window with nothing but the nodes of `keep`, one a node of `graph`, which is their merge, and what is
/// between these nodes. Merged they number nodes and edges in the order of `graph`. Nodes keep all of their tokens;
/// what is told of the window as a whole (techniques, peers, addresses) is left out.
pub fn core(graph: &WindowGraph, panes: &[&PaneGraph], keep: &[bool]) -> Vec<PaneGraph> {
    let (_, numbers) = WindowGraph::merge_without(graph.platform(), graph.start_ms(), graph.end_ms(), panes, None);
    panes.iter().zip(numbers).map(|(pane, numbers)| pane.only(|node| keep[numbers[node as usize] as usize])).collect()
}

impl PaneGraph {
    /// The pane with the nodes that `keep` names by number.
    fn only(&self, keep: impl Fn(u32) -> bool) -> Self {
        let mut nodes: Vec<PaneNode> = Vec::new();
        let (mut tokens, mut token_edges) = (Vec::new(), Vec::new());
        let mut number = vec![u32::MAX; self.nodes.len()];
        let both = |e: &PaneEdge| keep(e.src) && keep(e.dst);
        let mut edge_number = vec![NO_EDGE; self.edges.len()];
        for (new, (at, _)) in self.edges.iter().enumerate().filter(|(_, e)| both(e)).enumerate() {
            edge_number[at] = u16::try_from(new).unwrap_or(NO_EDGE);
        }
        let mut start = 0;
        for (at, node) in self.nodes.iter().enumerate() {
            let of = start..node.tokens_end as usize;
            start = of.end;
            if !keep(at as u32) {
                continue;
            }
            number[at] = nodes.len() as u32;
            tokens.extend_from_slice(&self.tokens[of.clone()]);
            let edge = |e: &u16| edge_number.get(*e as usize).copied().unwrap_or(NO_EDGE);
            token_edges.extend(self.token_edges[of].iter().map(edge));
            nodes.push(PaneNode { tokens_end: tokens.len() as u32, ..node.clone() });
        }
        let new = |node: u32| number[node as usize];
        let edges = self.edges.iter().filter(|e| both(e));
        let deferred = self.deferred.iter().filter(|d| [d.parent, d.child, d.on].into_iter().all(&keep));
        let attributes = self.attributes.iter().filter(|(node, ..)| keep(*node));
        Self {
            base_ms: self.base_ms,
            events: self.events,
            edges: edges.map(|e| PaneEdge { src: new(e.src), dst: new(e.dst), ..*e }).collect(),
            tokens: tokens.into(),
            token_edges: token_edges.into(),
            sets: self.sets.clone(),
            set_ends: self.set_ends.clone(),
            deferred: deferred
                .map(|d| Deferred { parent: new(d.parent), child: new(d.child), on: new(d.on), set: d.set })
                .collect(),
            attributes: attributes.map(|&(node, a, text)| (new(node), a, text)).collect(),
            findings: Box::default(),
            peers: Box::default(),
            local_addresses: Box::default(),
            text: self.text.clone(),
            nodes: nodes.into(),
        }
    }
}
