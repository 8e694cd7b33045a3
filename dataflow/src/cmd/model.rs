//! `logster model`: verifies or describes the model packages.

use clap::Subcommand;

use crate::config::Config;
use crate::engine::Models;

/// Arguments of `logster model`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check digests, feature version and permissions, load each package and run its self-test.
    Verify,
    /// Print what each package's manifest says, after verifying it.
    Info,
}

/// Runs it.
///
/// # Errors
/// A package that is missing, altered or not understood.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let models = Models::load(config, 1)?;
    for package in models.packages() {
        let manifest = package.manifest();
        println!("{} {} in {}", package.platform(), package.model_version(), package.folder().display());
        println!("  digest   {}", package.digest());
        if matches!(args.command, Command::Info) {
            println!("  features {}", manifest.feature_version);
            let parts = [
                ("calibration", &manifest.calibration),
                ("training", &manifest.training),
                ("metrics", &manifest.metrics),
            ];
            for (part, values) in parts {
                for (key, value) in values {
                    println!("  {part:<11} {key} = {value}");
                }
            }
        }
    }
    println!("digests, permissions, feature version and self-test are in order");
    Ok(())
}
