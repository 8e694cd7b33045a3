//! What is wrong with a configuration: all of it at once, each with its place and a remedy.

use std::fmt;

/// Where a value, or a problem with one, comes from. Later layers win.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody has set it.
    Default,
    /// A configuration file. Line and column count from 1, the column in characters.
    File {
        /// Path as given.
        name: String,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// An environment variable, by name.
    Environment(String),
    /// An option of the command line, as written, without its value.
    CommandLine(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::CommandLine(option) => f.write_str(option),
        }
    }
}

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, naming the key by its full path.
    pub what: String,
    /// The values involved; defaults are left out.
    pub places: Vec<Origin>,
    /// What to write instead.
    pub remedy: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.what)?;
        if !self.places.is_empty() {
            let places: Vec<String> = self.places.iter().map(Origin::to_string).collect();
            writeln!(f, "  where: {}", places.join(", "))?;
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "  remedy: {remedy}")?;
        }
        Ok(())
    }
}

/// Every mistake found, in the order of the file, then the environment, then the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| problem.fmt(f))
    }
}

impl std::error::Error for Problems {}
