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
    if let Some(ms) = parse_plain(text.as_bytes()) {
        return in_range(ms);
    }
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

/// The two forms that nearly every record has, `2026-03-18 19:07:13.512` and `2026-03-18T19:07:13.512Z`, in a tenth of
/// the time that the general parser takes. `None`: another form, or no time.
fn parse_plain(text: &[u8]) -> Option<TimeMs> {
    let (fixed, rest) = text.split_first_chunk::<19>()?;
    let [b'-', b'-', b'T' | b' ', b':', b':'] = [fixed[4], fixed[7], fixed[10], fixed[13], fixed[16]] else {
        return None;
    };
    let millis = match rest {
        [] | [b'Z'] => [b'0'; 3],
        [b'.', a, b, c] | [b'.', a, b, c, b'Z'] => [*a, *b, *c],
        _ => return None,
    };
    // All digits are judged at once, by whether any was none.
    let mut none = 0;
    let mut digit = |b: u8| {
        let d = b.wrapping_sub(b'0');
        none |= u8::from(d > 9);
        i64::from(d)
    };
    let mut two = |at: usize| digit(fixed[at]) * 10 + digit(fixed[at + 1]);
    let (year, month, day) = (two(0) * 100 + two(2), two(5), two(8));
    let (hour, minute, second) = (two(11), two(14), two(17));
    let millis = digit(millis[0]) * 100 + digit(millis[1]) * 10 + digit(millis[2]);
    if none != 0 {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days_in_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970, counting years from March so that the leap day ends one.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis)
}

fn in_range(ms: TimeMs) -> Option<TimeMs> {
    (MIN_TIME_MS..=MAX_TIME_MS).contains(&ms).then_some(ms)
}

/// `2026-03-18T19:07:13.512Z`. Times out of range are clamped to it.
pub fn format(ms: TimeMs) -> String {
    str::from_utf8(&format_bytes(ms)).expect("digits and marks").to_owned()
}

/// [`format`] without an allocation, for whoever writes millions of records.
pub fn format_bytes(ms: TimeMs) -> [u8; 24] {
    let ms = ms.clamp(MIN_TIME_MS, MAX_TIME_MS);
    let (days, of_day) = ((ms / 86_400_000) as u32, (ms % 86_400_000) as u32);
    // The reverse of the count in `parse_plain`, by eras of 400 years from 1 March of the year 0.
    let from_march = days + 719_468;
    let (era, of_era) = (from_march / 146_097, from_march % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let day = of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = era * 400 + year_of_era + u32::from(month <= 2);
    let mut out = *b"0000-00-00T00:00:00.000Z";
    let mut two = |at: usize, n: u32| {
        out[at] = b'0' + (n / 10 % 10) as u8;
        out[at + 1] = b'0' + (n % 10) as u8;
    };
    two(0, year / 100);
    two(2, year % 100);
    two(5, month);
    two(8, day);
    two(11, of_day / 3_600_000);
    two(14, of_day / 60_000 % 60);
    two(17, of_day / 1000 % 60);
    two(20, of_day % 1000 / 10);
    out[22] = b'0' + (of_day % 10) as u8;
    out
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
        let ms = 1_773_860_833_512;
        let want = Some(ms);
        assert_eq!(parse("2026-03-18 19:07:13.512"), want);
        assert_eq!(parse("2026-03-18T19:07:13.512Z"), want);
        assert_eq!(parse("2026-03-19T00:07:13.512+05:00"), want);
        assert_eq!(parse("2026-03-18T19:07:13.5129999Z"), want);
        for bad in ["", "-", "NaN", "19:07", "1969-12-31T00:00:00Z", "10000-01-01T00:00:00Z", "2026-13-01 00:00:00"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(format(ms), "2026-03-18T19:07:13.512Z");
        assert_eq!(format(MAX_TIME_MS), "9999-12-30T21:59:59.999Z");
    }

    /// The quick forms against jiff, in both directions.
    #[test]
    fn quick_forms_agree_with_the_general_parser() {
        let slow_format = |ms: i64| format!("{:.3}", Timestamp::from_millisecond(ms).unwrap());
        let mut times = vec![MIN_TIME_MS, MAX_TIME_MS, 951_782_399_999, 951_782_400_000, 4_107_542_399_999];
        // Every few days of 8,000 years, at an odd time of day.
        times.extend((0..MAX_TIME_MS).step_by(3 * 86_400_000 + 7_654_321).skip(1));
        for ms in times {
            let text = slow_format(ms);
            assert_eq!(format(ms), text);
            assert_eq!(parse(&text), Some(ms));
            assert_eq!(parse(&text[..23].replace('T', " ")), Some(ms));
            assert_eq!(parse(&text[..19]), Some(ms - ms % 1000));
        }
        for bad in ["2026-02-29 00:00:00", "2026-04-31T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-01 24:00:00"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse_plain(b"2024-02-29 00:00:00.1"), None);
        assert_eq!(parse("2024-02-29 00:00:00.1"), Some(1_709_164_800_100));
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
