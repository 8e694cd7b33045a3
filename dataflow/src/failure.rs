//! An error that says what is wrong, where, and what to do about it.
//!
//! Commands return [`anyhow::Result`]; an error that is (or contains) a [`Failure`] or a list of
//! configuration [`Problem`](crate::config::Problem)s keeps its place and remedy when [`report`] prints it:
//!
//! ```text
//! error: cannot listen on 127.0.0.1:9464
//!   cause: Address already in use (os error 98)
//!   where: http.bind
//!   remedy: stop what listens there, or choose another address (port 0 takes a free one)
//! ```

use std::error::Error;
use std::fmt::{self, Write};

use crate::config::Problems;

/// What went wrong, where, and the remedy.
#[derive(Debug)]
pub struct Failure {
    what: String,
    place: Option<String>,
    remedy: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
    code: u8,
}

impl Failure {
    /// A failure of the run: exit code 1.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: None, remedy: None, source: None, code: 1 }
    }

    /// A mistake in the command line or the configuration: exit code 2.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(what) }
    }

    /// Where: a file, a setting, a topic, an address.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Another exit code than 1.
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// The text for the terminal: what, causes, where, remedy.
pub fn report(error: &anyhow::Error) -> String {
    let mut text = String::new();
    if let Some(problems) = error.chain().find_map(|e| e.downcast_ref::<Problems>()) {
        return problems.to_string();
    }
    let mut chain = error.chain();
    let _ = writeln!(text, "error: {}", chain.next().expect("a chain begins with the error itself"));
    for cause in chain {
        let _ = writeln!(text, "  cause: {cause}");
    }
    if let Some(failure) = error.chain().find_map(|e| e.downcast_ref::<Failure>()) {
        for (label, part) in [("where", &failure.place), ("remedy", &failure.remedy)] {
            if let Some(part) = part {
                let _ = writeln!(text, "  {label}: {part}");
            }
        }
    }
    text
}

/// 2 for a mistake in usage or configuration, what a [`Failure`] says, 1 for everything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|e| e.is::<Problems>()) {
        return 2;
    }
    error.chain().find_map(|e| e.downcast_ref::<Failure>()).map_or(1, |failure| failure.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_every_part_once() {
        let inner = std::io::Error::other("disk full");
        let failure =
            Failure::new("could not write the report").because(inner).at("out.json").remedy("free some space");
        let error = anyhow::Error::new(failure).context("backtest stopped");
        assert_eq!(
            report(&error),
            "error: backtest stopped\n  cause: could not write the report\n  cause: disk full\n  where: out.json\n  \
             remedy: free some space\n"
        );
        assert_eq!(exit_code(&error), 1);
        assert_eq!(exit_code(&Failure::usage("no input").into()), 2);
        assert_eq!(report(&anyhow::anyhow!("plain")), "error: plain\n");
    }
}
