//! Breadth first through a scenario's states: the first violation found has the shortest story.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use crate::broken::Broken;
use crate::model::{Model, State, Step};
use crate::scenario::Scenario;

/// What a search came to.
pub struct Found {
    pub states: usize,
    pub why: String,
    /// Empty: nothing is wrong.
    pub story: Vec<String>,
}

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

fn key(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Searches all of a scenario, with a rule taken out.
pub fn search(scenario: &Scenario, broken: Option<Broken>) -> Found {
    let model = Model { scenario, broken };
    let first = State::new(scenario);
    let mut seen: HashSet<u64, BuildHasherDefault<AsIs>> = HashSet::from_iter([key(&first)]);
    // How each state was come to: the node before, and the step from it.
    let mut nodes: Vec<(usize, Option<Step>)> = vec![(0, None)];
    let mut layer = vec![(0, first)];
    let mut steps = Vec::new();
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (node, state) in &layer {
            steps.clear();
            model.steps(state, &mut steps);
            if steps.is_empty()
                && let Err(why) = model.check_end(state)
            {
                return Found { states: seen.len(), why, story: story(&nodes, *node) };
            }
            for (step, result) in steps.drain(..) {
                let checked = result.and_then(|state| model.check(&state).map(|()| state));
                match checked {
                    Ok(state) => {
                        if seen.insert(key(&state)) {
                            nodes.push((*node, Some(step)));
                            next.push((nodes.len() - 1, state));
                        }
                    }
                    Err(why) => {
                        nodes.push((*node, Some(step)));
                        return Found { states: seen.len(), why, story: story(&nodes, nodes.len() - 1) };
                    }
                }
            }
        }
        layer = next;
    }
    Found { states: seen.len(), why: String::new(), story: Vec::new() }
}

fn story(nodes: &[(usize, Option<Step>)], mut node: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while let (before, Some(step)) = nodes[node] {
        steps.push(format!("{step:?}"));
        node = before;
    }
    steps.reverse();
    steps
}
