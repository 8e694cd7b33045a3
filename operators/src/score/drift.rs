//! How far the windows of today have drifted from those that a model was trained on.
//!
//! The measure is the population stability index over fixed bins: below 0.1 nothing to speak of, from 0.25 on the model
//! sees another world than it learned from. The reference comes with the package (`[reference]` of its manifest: counts
//! of the benign training windows, by the bins of this file); a package without one has no drift to report.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::features::GRAPH_FEATURES;

/// The score among the quantities.
const SCORE: &str = "attack_prob";
/// Quantities watched: the score, then the columns of `graph_feat` in their order.
pub const QUANTITIES: [&str; 1 + GRAPH_FEATURES] =
    [SCORE, "nodes", "edges", "events", "processes", "files", "scripts", "network", "activity"];
/// Bins of the score: tenths.
const SCORE_BINS: usize = 10;
/// Bins of a count: one a power of two, 2^20 and more in the last.
const COUNT_BINS: usize = 21;
/// Bins of the sixths of a window with events.
const ACTIVITY_BINS: usize = 7;
/// Least share of a bin: an empty one would make the index infinite.
const LEAST_SHARE: f64 = 1e-4;
/// Once this many windows are counted all counts are halved: old ones fade.
const FADE_AT: u64 = 8192;

/// Bins of the quantity of that number.
const fn bins(quantity: usize) -> usize {
    match quantity {
        0 => SCORE_BINS,
        GRAPH_FEATURES => ACTIVITY_BINS,
        _ => COUNT_BINS,
    }
}

/// Which bin a value of the quantity falls into.
fn bin(quantity: usize, value: f64) -> usize {
    let scaled = match quantity {
        0 => value * 10.0,
        GRAPH_FEATURES => value * 6.0 + 0.5,
        // Columns hold log2 / 8.
        _ => value * 8.0,
    };
    // A cast saturates, and takes NaN for 0.
    (scaled as usize).min(bins(quantity) - 1)
}

/// Counts by bin, one list a quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    counts: Vec<Vec<u64>>,
    windows: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { counts: (0..QUANTITIES.len()).map(|q| vec![0; bins(q)]).collect(), windows: 0 }
    }
}

impl Distribution {
    /// Counts a window.
    pub fn add(&mut self, attack_prob: f64, graph_feat: &[f32; GRAPH_FEATURES]) {
        let values = std::iter::once(attack_prob).chain(graph_feat.iter().map(|v| f64::from(*v)));
        for (quantity, value) in values.enumerate() {
            self.counts[quantity][bin(quantity, value)] += 1;
        }
        self.windows += 1;
        if self.windows >= FADE_AT {
            self.counts.iter_mut().flatten().for_each(|n| *n /= 2);
            self.windows /= 2;
        }
    }

    /// Windows counted, faded ones less.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// The index of each quantity against `reference`; nothing while either has no windows.
    pub fn psi(&self, reference: &Self) -> Vec<(&'static str, f64)> {
        let index =
            |(name, (live, reference)): (&&'static str, (&Vec<u64>, &Vec<u64>))| Some((*name, psi(reference, live)?));
        QUANTITIES.iter().zip(self.counts.iter().zip(&reference.counts)).filter_map(index).collect()
    }
}

/// Population stability index of `live` against `reference`, bin by bin.
fn psi(reference: &[u64], live: &[u64]) -> Option<f64> {
    let total = |counts: &[u64]| Some(counts.iter().sum::<u64>()).filter(|n| *n > 0).map(|n| n as f64);
    let (r, l) = (total(reference)?, total(live)?);
    let share = |n: u64, of: f64| (n as f64 / of).max(LEAST_SHARE);
    let terms = reference.iter().zip(live).map(|(a, b)| (share(*a, r), share(*b, l)));
    Some(terms.map(|(a, b)| (b - a) * (b / a).ln()).sum())
}

/// `[reference]` of a manifest: a list of counts for each of [`QUANTITIES`].
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "BTreeMap<String, Vec<u64>>")]
pub struct Reference(pub Distribution);

impl TryFrom<BTreeMap<String, Vec<u64>>> for Reference {
    type Error = String;
    fn try_from(mut lists: BTreeMap<String, Vec<u64>>) -> Result<Self, String> {
        let counts = QUANTITIES.iter().enumerate().map(|(quantity, name)| {
            let counts = lists.remove(*name).ok_or_else(|| format!("[reference] lacks \"{name}\""))?;
            match counts.len() == bins(quantity) {
                true => Ok(counts),
                false => Err(format!("[reference] {name} has {} bins, not {}", counts.len(), bins(quantity))),
            }
        });
        let counts: Vec<Vec<u64>> = counts.collect::<Result<_, _>>()?;
        if let Some(unknown) = lists.keys().next() {
            return Err(format!("[reference] has \"{unknown}\", which is no quantity"));
        }
        let windows = counts[0].iter().sum();
        Ok(Self(Distribution { counts, windows }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_zero_for_the_same_and_grows_with_the_shift() {
        assert_eq!(psi(&[5, 5], &[50, 50]), Some(0.0));
        assert_eq!(psi(&[0, 0], &[1, 1]), None);
        let shifted = psi(&[50, 50], &[70, 30]).unwrap();
        assert!((shifted - 0.2 * (0.7f64 / 0.5).ln() - 0.2 * (0.5f64 / 0.3).ln()).abs() < 1e-12, "{shifted}");
        assert!(psi(&[100, 0], &[0, 100]).unwrap() > 10.0, "an empty bin counts, and stays finite");
    }

    #[test]
    fn bins_are_tenths_powers_of_two_and_sixths() {
        let of = |quantity, values: &[f64]| values.iter().map(|v| bin(quantity, *v)).collect::<Vec<_>>();
        assert_eq!(of(0, &[0.0, 0.099, 0.1, 0.95, 1.0, f64::NAN]), [0, 0, 1, 9, 9, 0]);
        // log2(1 + n) / 8 of n = 0, 1, 2, 3, 7 and the cap.
        assert_eq!(of(1, &[0.0, 0.125, 0.1875, 0.25, 0.375, 2.5]), [0, 1, 1, 2, 3, 20]);
        assert_eq!(of(8, &[1.0 / 6.0, 0.5, 1.0]), [1, 3, 6]);
    }

    #[test]
    fn old_windows_fade() {
        let mut d = Distribution::default();
        for _ in 0..FADE_AT {
            d.add(0.05, &[0.5; GRAPH_FEATURES]);
        }
        assert_eq!(d.windows(), FADE_AT / 2);
        for _ in 0..FADE_AT {
            d.add(0.95, &[0.5; GRAPH_FEATURES]);
        }
        assert!(d.counts[0][9] > 2 * d.counts[0][0], "{:?}", d.counts[0]);
    }
}
