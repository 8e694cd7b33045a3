//! `logster export-windows`: writes the graphs of captures for training.

use std::path::PathBuf;

use crate::cli::Overrides;
use crate::config::Config;
use crate::export;
use crate::replay::ReplayConfig;

/// Arguments of `logster export-windows`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file or a directory of captures, one recording a file.
    #[arg(long, value_name = "PATH")]
    pub input: PathBuf,
    /// Arrow file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Also export each Linux recording by auditd alone and by eBPF alone.
    #[arg(long)]
    pub views: bool,
}

impl Args {
    /// The settings that options stand for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.input(Some(&self.input));
    }
}

/// Runs it.
///
/// # Errors
/// Captures that cannot be read; a file that cannot be written.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let replay = ReplayConfig::of(config);
    let totals = export::export_windows(&args.input, &args.out, &replay, args.views, |recording, t| {
        println!("{:>4} recordings {:>9} records {:>7} windows  {recording}", t.recordings, t.records, t.windows);
    })?;
    println!(
        "wrote {}: {} windows of {} recordings, {} dead letters",
        args.out.display(),
        totals.windows,
        totals.recordings,
        totals.dead_letters
    );
    Ok(())
}
