//! Logster's operators: pure state machines (`on_event`, `on_frontier`), each in a file of its own.
//!
//! The order of an event's life: [`normalize`], [`rules`], [`window`], [`graph`] with [`features`], [`infer`] with
//! [`score`], [`dedup`], [`correlate`], [`enrich`]. Timely shells stand beside their cores; see `ARCHITECTURE.md`.

pub mod correlate;
pub mod dedup;
pub mod enrich;
pub mod features;
pub mod graph;
pub mod infer;
pub mod normalize;
pub mod rules;
pub mod score;
pub mod window;
