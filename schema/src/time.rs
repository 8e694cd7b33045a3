//! Milliseconds since 1970 UTC, and the one rule that turns a record's times into a window time.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z. Negative before.
pub type TimeMs = i64;

/// 9999-12-30T21:59:59.999Z, jiff's last whole hour: later is no time.
pub const MAX_TIME_MS: TimeMs = 253_402_207_199_999;
/// 1970-01-01: no log line is older.
pub const MIN_TIME_MS: TimeMs = 0;

/// Parses ISO 8601 with `T` or a space, with or without zone; no zone means UTC.
///
/// Sub-millisecond digits are cut. `None` when it is no time between 1970 and 9999.
pub fn parse(text: &str) -> Option<TimeMs> {
    let text = text.trim();
    let ms = match text.parse::<Timestamp>() {
        Ok(t) => t.as_millisecond(),
        Err(_) => {
            let civil: DateTime = text.parse().ok()?;
            civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond()
        }
    };
    in_range(ms)
}

/// Seconds since 1970 as a number, possibly fractional; values over 1e11 are read as milliseconds.
pub fn from_epoch(value: f64) -> Option<TimeMs> {
    if !value.is_finite() {
        return None;
    }
    let ms = if value.abs() > 1e11 { value } else { value * 1000.0 };
    if !(MIN_TIME_MS as f64..=MAX_TIME_MS as f64).contains(&ms) {
        return None;
    }
    in_range(ms.round() as TimeMs)
}

fn in_range(ms: TimeMs) -> Option<TimeMs> {
    (MIN_TIME_MS..=MAX_TIME_MS).contains(&ms).then_some(ms)
}

/// `2026-03-18T19:07:13.512Z`. Times out of range are clamped to it.
pub fn format(ms: TimeMs) -> String {
    let t = Timestamp::from_millisecond(ms.clamp(MIN_TIME_MS, MAX_TIME_MS)).expect("clamped into jiff's range");
    format!("{t:.3}")
}

/// Serde of a [`TimeMs`] as an ISO 8601 string in UTC.
pub mod iso {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes `2026-03-18T19:07:13.512Z`.
    pub fn serialize<S: Serializer>(ms: &super::TimeMs, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::format(*ms))
    }
    /// Reads what [`super::parse`] reads.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<super::TimeMs, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        super::parse(&text).ok_or_else(|| D::Error::custom(format!("\"{text}\" is no ISO 8601 time")))
    }
}

/// How far times may stray before a record is moved or sent to the backfill (DESIGN section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimits {
    /// How much later than its event time a live record may arrive (`input.max_lateness`).
    pub max_lateness_ms: i64,
    /// How far into the future of its arrival an event time may lie (`input.max_skew`).
    pub max_skew_ms: i64,
    /// How far back of its arrival a backlog may reach (`input.max_backfill`).
    pub max_backfill_ms: i64,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self { max_lateness_ms: 10_000, max_skew_ms: 10_000, max_backfill_ms: 24 * 3_600_000 }
    }
}

/// Which windows an event goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// On time: windows closed by the watermark.
    Live,
    /// Older than `arrival - max_lateness`: the endpoint's backfill windows.
    Backfill,
}

/// The time that decides an event's windows, and how it was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowTime {
    /// Time for windows.
    pub time_ms: TimeMs,
    /// Live or backfill.
    pub lane: Lane,
    /// The time was moved: it lay beyond `max_skew` ahead or `max_backfill` behind.
    pub clamped: bool,
}

impl TimeLimits {
    /// Decides from the record's own time and its (monotonic) arrival. A pure function: replays agree.
    ///
    /// `record_ms` is the time that the record carries for itself (Winlogbeat's `@timestamp`, an
    /// envelope's `timestamp`); `None` means it carries none, and arrival stands in.
    pub fn window_time(&self, record_ms: Option<TimeMs>, arrival_ms: TimeMs) -> WindowTime {
        let time = record_ms.unwrap_or(arrival_ms);
        let newest = arrival_ms + self.max_skew_ms;
        let oldest = arrival_ms - self.max_backfill_ms;
        let time_ms = time.clamp(oldest, newest);
        let lane = if time_ms < arrival_ms - self.max_lateness_ms { Lane::Backfill } else { Lane::Live };
        WindowTime { time_ms, lane, clamped: time_ms != time }
    }

    /// The record's own time: `utc_ms` unless it strays from `recorded_ms` by more than `max_lateness`.
    ///
    /// Sysmon's UtcTime of ids 3 and 22 is often wrong by days, TimeCreated (`@timestamp`) is right.
    pub fn record_time(&self, utc_ms: Option<TimeMs>, recorded_ms: Option<TimeMs>) -> Option<TimeMs> {
        match (utc_ms, recorded_ms) {
            (Some(u), Some(r)) if (u - r).abs() > self.max_lateness_ms => Some(r),
            (Some(u), _) => Some(u),
            (None, r) => r,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_both_forms_and_zones() {
        let want = Some(1_773_860_833_512);
        assert_eq!(parse("2026-03-18 19:07:13.512"), want);
        assert_eq!(parse("2026-03-18T19:07:13.512Z"), want);
        assert_eq!(parse("2026-03-19T00:07:13.512+05:00"), want);
        assert_eq!(parse("2026-03-18T19:07:13.5129999Z"), want);
        for bad in ["", "-", "NaN", "19:07", "1969-12-31T00:00:00Z", "10000-01-01T00:00:00Z", "2026-13-01 00:00:00"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(format(want.unwrap()), "2026-03-18T19:07:13.512Z");
        assert_eq!(format(MAX_TIME_MS), "9999-12-30T21:59:59.999Z");
    }

    #[test]
    fn epochs() {
        assert_eq!(from_epoch(1_773_953_890.204), Some(1_773_953_890_204));
        assert_eq!(from_epoch(1_773_953_890_204.0), Some(1_773_953_890_204));
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(from_epoch(bad), None);
        }
    }

    #[test]
    fn window_time_rules() {
        let l = TimeLimits::default();
        let at = |record| l.window_time(record, 1_000_000_000);
        assert_eq!(at(None), WindowTime { time_ms: 1_000_000_000, lane: Lane::Live, clamped: false });
        assert_eq!(at(Some(999_990_000)).lane, Lane::Live);
        assert_eq!(at(Some(999_989_999)).lane, Lane::Backfill);
        assert_eq!(at(Some(1_000_020_000)), WindowTime { time_ms: 1_000_010_000, lane: Lane::Live, clamped: true });
        assert_eq!(
            at(Some(0)),
            WindowTime { time_ms: 1_000_000_000 - 86_400_000, lane: Lane::Backfill, clamped: true }
        );
        assert_eq!(l.record_time(Some(5), Some(20_000)), Some(20_000));
        assert_eq!(l.record_time(Some(15_000), Some(20_000)), Some(15_000));
        assert_eq!(l.record_time(None, Some(3)), Some(3));
    }
}
