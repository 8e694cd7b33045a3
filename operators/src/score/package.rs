//! A model package: a folder with `manifest.toml` and the files that it names, each with its SHA-256.
//!
//! Every file is read once, checked in memory, and used from memory: what was verified is what runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use logster_schema::Platform;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::drift::Reference;

/// The manifest format that this version reads.
const FORMAT: u32 = 1;
/// Name of the manifest within its folder.
const MANIFEST: &str = "manifest.toml";
/// The model within its folder.
pub(super) const MODEL: &str = "model.onnx";
/// The golden batch within its folder.
pub(super) const SELF_TEST: &str = "selftest.json";

/// Why a package is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PackageError {
    #[error("cannot read {path}: name a folder that holds a model package (`model.packages`)")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is named by {MANIFEST} but cannot be read: copy the whole package again, or run `make train` to make one"
    )]
    Missing {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} can be changed by other users (mode {mode:03o}): run `chmod o-w {path}`")]
    Writable { path: PathBuf, mode: u32 },
    #[error("{path} is not a package manifest: {reason}; run `make train` to make a package anew")]
    Manifest { path: PathBuf, reason: String },
    #[error(
        "{path} has SHA-256 {found}, {MANIFEST} says {expected}: it was changed or cut short, copy the package again"
    )]
    Digest { path: PathBuf, expected: String, found: String },
    #[error("{path} is a package for {found}, wanted one for {expected}: check `model.packages`")]
    Platform { path: PathBuf, expected: Platform, found: Platform },
    #[error(
        "{path} needs features \"{found}\", this logster computes \"{expected}\": use the package that came with it, or train one"
    )]
    FeatureVersion { path: PathBuf, expected: String, found: String },
}

/// What `manifest.toml` holds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// Manifest format, 1.
    pub format: u32,
    /// Model name.
    pub name: String,
    /// Version, part of every inference id.
    pub version: String,
    /// Whose windows it scores.
    pub platform: Platform,
    /// Feature specification that it was trained on.
    pub feature_version: String,
    /// Names, element types and widths of inputs and outputs.
    pub tensors: TensorContract,
    /// How logits became probabilities.
    pub calibration: BTreeMap<String, toml::Value>,
    /// Digest of the training data, seeds and sizes.
    pub training: BTreeMap<String, toml::Value>,
    /// What cross-validation measured.
    pub metrics: BTreeMap<String, toml::Value>,
    /// The benign training windows in numbers, for drift; packages may lack it.
    pub reference: Option<Reference>,
    /// SHA-256 of every other file of the package, in hex.
    pub files: BTreeMap<String, String>,
}

/// The model's inputs and outputs, in order.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TensorContract {
    /// `name: type[length]` or `name: type[length,columns]`.
    pub inputs: Vec<String>,
    /// As `inputs`.
    pub outputs: Vec<String>,
}

/// A verified package, in memory.
#[derive(Clone, Debug)]
pub struct ModelPackage {
    manifest: ModelManifest,
    folder: PathBuf,
    digest: String,
    files: Arc<BTreeMap<String, Vec<u8>>>,
}

impl ModelPackage {
    /// Reads and verifies the package in `folder`, which must be one for `platform` where that is given.
    pub fn load(
        folder: &Path,
        platform: impl Into<Option<Platform>>,
        feature_version: &str,
    ) -> Result<Self, PackageError> {
        refuse_writable(folder)?;
        let path = folder.join(MANIFEST);
        refuse_writable(&path)?;
        let bytes = fs::read(&path).map_err(|source| PackageError::Read { path: path.clone(), source })?;
        let wrong = |reason: String| PackageError::Manifest { path: path.clone(), reason };
        let text = std::str::from_utf8(&bytes).map_err(|e| wrong(e.to_string()))?;
        let manifest: ModelManifest = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!("its format is {}, this logster reads {FORMAT}", manifest.format)));
        }
        if let Some(platform) = platform.into()
            && manifest.platform != platform
        {
            return Err(PackageError::Platform { path, expected: platform, found: manifest.platform });
        }
        if manifest.feature_version != feature_version {
            return Err(PackageError::FeatureVersion {
                path,
                expected: feature_version.to_owned(),
                found: manifest.feature_version.clone(),
            });
        }
        if let Some(name) = [MODEL, SELF_TEST].into_iter().find(|name| !manifest.files.contains_key(*name)) {
            return Err(wrong(format!("[files] does not name {name}")));
        }
        let mut files = BTreeMap::new();
        for (name, expected) in &manifest.files {
            if name.contains(['/', '\\']) || name.starts_with('.') {
                return Err(wrong(format!("[files] names \"{name}\", which is not a plain file name")));
            }
            let path = folder.join(name);
            let bytes = fs::read(&path).map_err(|source| PackageError::Missing { path: path.clone(), source })?;
            refuse_writable(&path)?;
            let found = hex(&bytes);
            if found != expected.to_ascii_lowercase() {
                return Err(PackageError::Digest { path, expected: expected.clone(), found });
            }
            files.insert(name.clone(), bytes);
        }
        Ok(Self { manifest, folder: folder.to_path_buf(), digest: hex(&bytes), files: Arc::new(files) })
    }

    /// The manifest.
    pub fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    /// Where it was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whose windows it scores.
    pub fn platform(&self) -> Platform {
        self.manifest.platform
    }

    /// Name and version, as results carry them.
    pub fn model_version(&self) -> String {
        format!("{}-{}", self.manifest.name, self.manifest.version)
    }

    /// SHA-256 of the manifest, hence of everything in the package.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// A verified file.
    ///
    /// # Panics
    /// On a name that `load` does not require.
    pub(super) fn file(&self, name: &str) -> &[u8] {
        &self.files[name]
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A file that anybody may change is refused. Its group may write it: a clone under umask 002 gives everything
/// to the owner's own group, and who is in a group is the administrator's decision.
fn refuse_writable(path: &Path) -> Result<(), PackageError> {
    use std::os::unix::fs::PermissionsExt;
    let meta = fs::metadata(path).map_err(|source| PackageError::Read { path: path.to_path_buf(), source })?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(PackageError::Writable { path: path.to_path_buf(), mode });
    }
    Ok(())
}
