//! One module a subcommand: its arguments, the settings that they stand for, and `run`.

pub mod backtest;
pub mod config;
pub mod demo;
pub mod export_feedback;
pub mod export_windows;
pub mod model;
pub mod produce;
pub mod rules;
pub mod run;
pub mod state;
pub mod topics;
