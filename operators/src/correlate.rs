//! Relates the alerts of a tenant that fire together, joins them to incidents, and publishes alerts.
//!
//! - Input: what dedup says of each alert ([`AlertChange`]), at its time, exchanged by the tenant's shard.
//! - Output: one [`TenantChange`] per alert and time at which its record or its state changed. The records
//!   with `published` set are those of `logster-alerts`; all of them together are the shard's checkpoint.
//! - State: [`spans`] and [`tenants`] per tenant, and the arrangements of the collections between them.
//!   Bounded by `max_live_per_tenant` and `max_correlated_per_shard`; see there for when alerts are let go.
//! - Ordering: any arrival order ahead of the frontier gives the same output.
//! - Failure: none of its own; a restored shard ignores inputs below the frontier of its checkpoint, feeds its
//!   alerts to the collections again at that frontier, and publishes only what then differs.
//!
//! ```text
//!  alert changes ─▶ spans ─┬─▶ join by (tenant, slot) ─▶ links ─┬─▶ least id, iterated ─▶ incidents ─┐
//!                          │                                    └────────────────────────────────────┤
//!                          └─────────────────── alerts ──────────────────────────────────────────────┴▶ tenants ─▶
//! ```
//!
//! Two alerts of different endpoints are *linked* if their activity, from first to last window end, is at most
//! the correlation window apart, whichever came first. The link is *lateral movement* if a network event of one
//! reached an address or the name of the other ([`contact`]). An *incident* is a connected component, named by
//! its least alert id; an alert without links has none. A false positive takes its links with it, and the
//! incident falls apart where it held it together; the correction of that verdict brings them back.
//!
//! Links and incidents are differential collections, because they are transitive and they retract. Evidence is
//! a plain function of the two linked alerts, computed where both are at hand.

use logster_schema::AlertUpdate;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

pub mod contact;
mod shell;
pub mod spans;
pub mod tenants;
#[cfg(test)]
mod tests;

pub use crate::dedup::AlertChange;
pub use shell::{CorrelateMetrics, RestoredTenants, correlate};

/// Related endpoints listed on an alert: those with a contact first, then the earliest alerts.
pub const MAX_RELATED: usize = 32;

/// Settings of the operator, `alerts.*`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CorrelateConfig {
    /// How far apart the activity of linked alerts may be, ms (`alerts.correlation_window_seconds`).
    pub correlation_window_ms: i64,
    /// How long after its last detection an alert may still take one, ms: dedup's window and margin.
    pub active_ms: i64,
    /// How far before its time a window may end, ms: `input.max_backfill`, a window and the lateness. An alert
    /// whose activity ended earlier can no longer be linked with a new one.
    pub reach_back_ms: i64,
    /// Shards of the key space; a tenant's alerts meet at the shard of its name.
    pub shards: u32,
    /// Of a tenant's alerts that may still take detections, so many are correlated. What opens above that is
    /// published without related endpoints: links grow with the square of it.
    pub max_live_per_tenant: usize,
    /// So many alerts of a shard are kept for correlation.
    pub max_correlated_per_shard: usize,
}

impl Default for CorrelateConfig {
    fn default() -> Self {
        Self {
            correlation_window_ms: 60_000,
            active_ms: 520_000,
            reach_back_ms: 24 * 3_600_000 + 600_000,
            shards: 64,
            max_live_per_tenant: 512,
            max_correlated_per_shard: 8192,
        }
    }
}

/// An alert in the collections: its tenant's shard and its id as a number, in the order of the ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node {
    /// Where its record is kept.
    pub shard: u32,
    /// Alert id.
    pub id: u128,
}

impl Node {
    /// The alert of that id. Ids are 32 hex digits; anything else, which no alert of ours has, is hashed.
    pub fn of(shard: u32, alert_id: &str) -> Self {
        let id = u128::from_str_radix(alert_id, 16).unwrap_or_else(|_| xxh3_128(alert_id.as_bytes()));
        Self { shard, id }
    }

    /// The id as it stands in records.
    pub fn alert_id(id: u128) -> String {
        format!("{id:032x}")
    }
}

/// What the tenant stage keeps of an alert, and what its checkpoint holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrackedAlert {
    /// Its facts; the alert in it is the record as last published.
    #[serde(with = "logster_schema::wire")]
    pub update: Box<AlertUpdate>,
    /// It takes part in correlation.
    pub correlated: bool,
    /// Dedup has forgotten it; it is kept for what it holds together.
    pub forgotten: bool,
}

/// A change of what the tenant stage has said or keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TenantChange {
    /// Shard of the tenant.
    pub shard: u32,
    /// The alert.
    pub alert_id: String,
    /// Its state from now on; `None`: let go.
    pub state: Option<Box<TrackedAlert>>,
    /// `state.update.alert` is a new record for `logster-alerts`.
    pub published: bool,
}
