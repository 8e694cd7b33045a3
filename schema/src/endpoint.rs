//! The key of everything: tenant and endpoint.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Operating system family of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Sysmon and PowerShell through Winlogbeat.
    Windows,
    /// auditd and eBPF.
    Linux,
}

impl Platform {
    /// Both platforms.
    pub const ALL: [Self; 2] = [Self::Windows, Self::Linux];

    /// `windows` or `linux`, as in records and in the model package's folder.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Windows => "windows",
            Self::Linux => "linux",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One monitored host of one tenant. Cheap to clone; ordered and compared by `tenant:endpoint`.
///
/// The tenant is part of the key, so keyed state cannot cross tenants. A tenant has no `:` in it
/// (the normalizer replaces it), so the joined form is unambiguous.
#[derive(Clone, Serialize, Deserialize)]
pub struct Endpoint {
    /// `tenant:endpoint`.
    key: Arc<str>,
    /// Length of the tenant in bytes.
    tenant_len: u32,
    /// xxh3 of `key`: fixes shard and window phase for good.
    hash: u64,
}

impl Endpoint {
    /// The endpoint `host` of `tenant`. `host` is expected in lower case.
    pub fn new(tenant: &str, host: &str) -> Self {
        let tenant = tenant.replace(':', "_");
        let key: Arc<str> = format!("{tenant}:{host}").into();
        let hash = xxh3_64(key.as_bytes());
        Self { key, tenant_len: tenant.len() as u32, hash }
    }

    /// `tenant:endpoint`, the Kafka key of every output.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Tenant id.
    pub fn tenant(&self) -> &str {
        &self.key[..self.tenant_len as usize]
    }

    /// Host name, lower-cased.
    pub fn host(&self) -> &str {
        &self.key[self.tenant_len as usize + 1..]
    }

    /// Stable 64-bit hash of the key (xxh3): the same on every machine and in every version.
    pub fn hash64(&self) -> u64 {
        self.hash
    }

    /// Shard in `0..shards`; shards map to workers, keys never rehash.
    pub fn shard(&self, shards: u32) -> u32 {
        (self.hash % u64::from(shards)) as u32
    }

    /// Shard of the tenant, where alerts of one tenant meet.
    pub fn tenant_shard(&self, shards: u32) -> u32 {
        tenant_shard(self.tenant(), shards)
    }

    /// Offset of this endpoint's window grid, in `0..hop_ms`: spreads closings over the interval.
    pub fn phase_ms(&self, hop_ms: i64) -> i64 {
        // The upper half of the hash, so that phase and shard are independent.
        ((self.hash >> 32) % hop_ms as u64) as i64
    }
}

/// Shard of a tenant.
pub fn tenant_shard(tenant: &str, shards: u32) -> u32 {
    (xxh3_64(tenant.as_bytes()) % u64::from(shards)) as u32
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.key == other.key
    }
}
impl Eq for Endpoint {}
impl Hash for Endpoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}
impl PartialOrd for Endpoint {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Endpoint {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_hash_are_stable() {
        let e = Endpoint::new("default", "desktop-1nnimrr");
        assert_eq!((e.tenant(), e.host(), e.key()), ("default", "desktop-1nnimrr", "default:desktop-1nnimrr"));
        // Pinned: a change would move every shard and every window.
        assert_eq!(e.hash64(), xxh3_64(b"default:desktop-1nnimrr"));
        assert_eq!(Endpoint::new("a:b", "h").tenant(), "a_b");
    }
}
