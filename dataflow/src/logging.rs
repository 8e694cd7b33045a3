//! Log lines to standard error, as text or JSON. Standard output belongs to the commands' results.

use std::io::IsTerminal;

use tracing_subscriber::fmt;

use crate::config::Log;
use crate::config::value::LogFormat;

/// Makes `log` the process's subscriber. A second call changes nothing.
pub fn start(log: &Log) {
    let builder = fmt::Subscriber::builder().with_env_filter(log.level.env_filter()).with_writer(std::io::stderr);
    // `Err` only where a subscriber is set already: then that one stays.
    let _ = match log.format {
        LogFormat::Text => {
            tracing::subscriber::set_global_default(builder.with_ansi(std::io::stderr().is_terminal()).finish())
        }
        LogFormat::Json => tracing::subscriber::set_global_default(builder.json().flatten_event(true).finish()),
    };
}
