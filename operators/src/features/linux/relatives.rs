//! What only the whole window can tell of a process: who started it, and what it and its children showed.
//!
//! A parent may have started panes ago, and its name is known where it was met. So pairs of parent and child are
//! made at the merge, and so is the union over a process and its children, one generation deep: on our captures
//! that tells attacks apart as well as whole sessions do, and better than windows. A hub (`sshd`, `cron`, a web
//! server) starts unrelated things: its children are not its own.

use crate::features::TokenId;
use crate::graph::{Attribute, NodeKind, Relation, WindowGraph};

/// Tokens of each process from its parent's and grandparent's program: `pc:apache2>sh`, `gp:apache2>sh>ask:user`.
pub(crate) fn lineage(graph: &WindowGraph) -> Vec<(u32, TokenId)> {
    let program = |node: u32| graph.node(node).attribute(Attribute::Program);
    let parents = parents(graph);
    let mut tokens = Vec::new();
    for (node, parent) in parents.iter().enumerate() {
        let (node, Some(parent)) = (node as u32, *parent) else { continue };
        let Some(own) = program(node) else { continue };
        let above = program(parent).unwrap_or("-");
        tokens.push((node, TokenId::new(&format!("pc:{above}>{own}"), false)));
        let grandparent = parents[parent as usize].and_then(program).unwrap_or("-");
        tokens.push((node, TokenId::new(&format!("gp:{grandparent}>{above}>{own}"), false)));
    }
    tokens
}

/// Every process of the window is on the list and none did anything suspicious.
///
/// Names alone would not do: where only eBPF watches, a thread's name is what it calls itself. A process that
/// nothing names is not on any list.
pub fn is_idle(graph: &WindowGraph, allowed: impl Fn(&str) -> bool) -> bool {
    let mut processes = graph.nodes().filter(|node| node.kind() == NodeKind::Process);
    processes.all(|node| allowed(node.label()) && !node.tokens().any(TokenId::is_tree))
}

/// For each node what it shares: of a process its own tokens, its inline scripts' and, unless it is a hub, its
/// children's. Sorted ids; nothing for other kinds.
pub(crate) fn context(graph: &WindowGraph) -> Vec<Vec<TokenId>> {
    let own: Vec<Vec<TokenId>> = graph
        .nodes()
        .map(|node| if node.kind() == NodeKind::Process { node.tokens().collect() } else { Vec::new() })
        .collect();
    let mut context = own.clone();
    for (child, parent) in parents(graph).iter().enumerate() {
        if let Some(parent) = *parent
            && !graph.node(parent).is_hub()
        {
            context[parent as usize].extend_from_slice(&own[child]);
        }
    }
    for tokens in &mut context {
        tokens.sort_unstable();
        tokens.dedup_by_key(|token| token.id());
    }
    context
}

/// The parent of each process; the first in order, should the log name two.
fn parents(graph: &WindowGraph) -> Vec<Option<u32>> {
    let mut parents = vec![None; graph.num_nodes() as usize];
    for edge in graph.edges() {
        if edge.relation == Relation::Spawned && edge.src != edge.dst {
            parents[edge.dst as usize].get_or_insert(edge.src);
        }
    }
    parents
}
