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

use rustc_hash::FxHashSet;

use super::{PaneGraph, Relation, WindowGraph};

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
        let graph = WindowGraph::merge_without(g.platform(), g.start_ms(), g.end_ms(), self.panes, Some(&deleted));
        let nodes = (0..g.num_nodes()).filter(|at| !deleted.nodes[*at as usize]).collect();
        Remainder { graph, nodes, edges: there }
    }
}
