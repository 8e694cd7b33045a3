//! `logster model`: verifies, describes, compares and examines model packages.

use std::path::PathBuf;

use clap::Subcommand;
use logster_operators::features::FEATURE_VERSION;
use logster_operators::score::ModelPackage;

use crate::compare::compare;
use crate::config::Config;
use crate::engine::Models;
use crate::failure::Failure;
use crate::faithfulness;
use crate::replay::ReplayConfig;

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
    /// Score captures with two packages of one platform: agreement, detections gained and lost.
    Compare {
        /// Folder of the package in use.
        a: PathBuf,
        /// Folder of the package to take its place.
        b: PathBuf,
        /// A file or a directory of captures.
        #[arg(long, value_name = "PATH")]
        input: PathBuf,
    },
    /// Delete the edges that explanations name first from every attack window of captures, and five random ones, and
    /// score again.
    Faithfulness {
        /// A file or a directory of captures, one recording a file.
        #[arg(long, value_name = "PATH")]
        input: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
/// A package that is missing, altered or not understood; captures that cannot be read.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    match &args.command {
        Command::Verify => describe(config, false),
        Command::Info => describe(config, true),
        Command::Compare { a, b, input } => {
            let load = |folder: &PathBuf| ModelPackage::load(folder, None, FEATURE_VERSION);
            let (a, b) = (load(a)?, load(b)?);
            if a.platform() != b.platform() {
                return Err(Failure::usage("the packages are for different platforms")
                    .at(format!(
                        "{}: {}, {}: {}",
                        a.folder().display(),
                        a.platform(),
                        b.folder().display(),
                        b.platform()
                    ))
                    .remedy("compare two packages of one platform")
                    .into());
            }
            let platform = a.platform();
            println!("{} ({})", a.model_version(), &a.digest()[..12]);
            println!("{} ({})", b.model_version(), &b.digest()[..12]);
            let (a, b) = (Models::of(config, vec![a], 1)?, Models::of(config, vec![b], 1)?);
            let found = compare(input, platform, &a, &b, &ReplayConfig::of(config), config.alerts.min_threshold)?;
            print!("{found}");
            Ok(())
        }
        Command::Faithfulness { input } => {
            let models = Models::load(config, 1)?;
            let found = faithfulness::measure(input, &models, &ReplayConfig::of(config), config.alerts.min_threshold)?;
            for (platform, figures) in found {
                println!("{platform}: {figures}");
            }
            Ok(())
        }
    }
}

fn describe(config: &Config, whole: bool) -> anyhow::Result<()> {
    let models = Models::load(config, 1)?;
    for package in models.packages() {
        let manifest = package.manifest();
        println!("{} {} in {}", package.platform(), package.model_version(), package.folder().display());
        println!("  digest   {}", package.digest());
        if whole {
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
