//! The dataflow: configuration, sources, topology, metrics and the command line of `logster`.
//!
//! Start with [`cli`] for what the binary can be asked to do and [`config`] for what it can be told.
//! `main.rs` only calls [`cli::main`].

pub mod backtest;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod cmd;
pub mod commit;
pub mod compare;
pub mod config;
pub mod engine;
pub mod export;
pub mod failure;
pub mod faithfulness;
pub mod feedback;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod reload;
pub mod replay;
pub mod rules;
pub mod source;
pub mod startup;
pub mod summary;
pub mod topology;
pub mod watch;
