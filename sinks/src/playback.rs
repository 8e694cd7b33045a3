//! Plays captures in order of arrival: one clock a file, files merged by their clocks.
//!
//! - Input: the files that [`capture::files`] finds. Recordings of different times may lie side by side: they are
//!   played in the order of their times, not of their names.
//! - Output: every line, with its arrival. Arrival never goes back, so a topic that is filled from a playback
//!   decides every record as the file source does.
//! - State: two lines a file.
//! - Failure: as [`CaptureReader`].
//!
//! A file's clock is the running maximum of its lines' times. A line that runs more than an hour ahead of both
//! its neighbours is a broken clock or a forgery: it does not move the clock of the capture.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

use logster_schema::TimeMs;

use crate::capture::{self, CaptureError, CaptureReader, Framing, Line};

/// How far ahead of its neighbours a line may be before its time is not believed.
const LEAP_MS: i64 = 3_600_000;

/// A line with the arrival it is played at.
#[derive(Clone, Copy, Debug)]
pub struct Played<'a> {
    /// The line; `line.file` is an index into [`Playback::files`].
    pub line: Line<'a>,
    /// Arrival, never less than that of the line before.
    pub arrival_ms: TimeMs,
}

/// Reads captures merged by time.
pub struct Playback {
    files: Vec<PathBuf>,
    tracks: Vec<Track>,
    /// Arrival of each track's current line, earliest first; ties in order of files.
    next: BinaryHeap<Reverse<(TimeMs, usize)>>,
    /// The track whose current line was handed out last.
    playing: Option<usize>,
}

impl Playback {
    /// Opens every file below `input` and reads its first lines.
    pub fn open(input: &Path, framing: Framing) -> Result<Self, CaptureError> {
        let files = capture::files(input)?;
        let mut playback = Self { tracks: Vec::new(), next: BinaryHeap::new(), playing: None, files };
        for (n, path) in playback.files.iter().enumerate() {
            let mut track = Track::open(path, framing)?;
            if let Some(arrival) = track.advance()? {
                playback.next.push(Reverse((arrival, n)));
            }
            playback.tracks.push(track);
        }
        Ok(playback)
    }

    /// The files, in the order that [`Line::file`] counts.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The next line of all files; `None` after the last.
    pub fn next_line(&mut self) -> Result<Option<Played<'_>>, CaptureError> {
        if let Some(n) = self.playing.take()
            && let Some(arrival) = self.tracks[n].advance()?
        {
            self.next.push(Reverse((arrival, n)));
        }
        let Some(Reverse((arrival_ms, n))) = self.next.pop() else { return Ok(None) };
        self.playing = Some(n);
        let Buffered { bytes, line_no, cut, .. } = &self.tracks[n].current;
        Ok(Some(Played { line: Line { file: n, line_no: *line_no, bytes, cut: *cut }, arrival_ms }))
    }
}

#[derive(Default)]
struct Buffered {
    bytes: Vec<u8>,
    line_no: u64,
    cut: bool,
    /// The time that the line gives for itself.
    own_ms: Option<TimeMs>,
}

struct Track {
    reader: CaptureReader,
    framing: Framing,
    clock: Option<TimeMs>,
    current: Buffered,
    /// The line after the current one, and whether there is one.
    ahead: Buffered,
    more: bool,
}

impl Track {
    fn open(path: &Path, framing: Framing) -> Result<Self, CaptureError> {
        let mut track = Self {
            reader: CaptureReader::open(path)?,
            framing,
            clock: None,
            current: Buffered::default(),
            ahead: Buffered::default(),
            more: true,
        };
        track.read_ahead()?;
        Ok(track)
    }

    fn read_ahead(&mut self) -> Result<(), CaptureError> {
        match self.reader.next_line()? {
            None => self.more = false,
            Some(line) => {
                self.ahead.bytes.clear();
                self.ahead.bytes.extend_from_slice(line.bytes);
                (self.ahead.line_no, self.ahead.cut) = (line.line_no, line.cut);
                self.ahead.own_ms = self.framing.parse(&line).ok().and_then(|envelope| envelope.arrival_ms());
            }
        }
        Ok(())
    }

    /// Moves to the next line and gives its arrival.
    fn advance(&mut self) -> Result<Option<TimeMs>, CaptureError> {
        if !self.more {
            return Ok(None);
        }
        std::mem::swap(&mut self.current, &mut self.ahead);
        self.read_ahead()?;
        let neighbour = self.more.then_some(self.ahead.own_ms).flatten();
        self.clock = Some(arrival(self.clock, self.current.own_ms, neighbour));
        Ok(self.clock)
    }
}

/// The clock after a line, from the clock before it, its own time and that of the line after it.
fn arrival(clock: Option<TimeMs>, own: Option<TimeMs>, next: Option<TimeMs>) -> TimeMs {
    match (clock, own) {
        (None, None) => next.unwrap_or(0),
        (Some(clock), None) => clock,
        (clock, Some(own)) => {
            let ahead = |other: Option<TimeMs>| other.is_some_and(|t| own - t > LEAP_MS);
            if ahead(next) && (clock.is_none() || ahead(clock)) {
                clock.or(next).expect("next is there, or own were not ahead of it")
            } else {
                clock.map_or(own, |clock| clock.max(own))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ahead_of_its_neighbours_does_not_move_the_clock() {
        const H: i64 = 3_600_000;
        assert_eq!(arrival(None, None, None), 0);
        assert_eq!(arrival(None, Some(5), Some(7)), 5);
        assert_eq!(arrival(Some(9), Some(5), Some(7)), 9, "never back");
        assert_eq!(arrival(Some(9), Some(9_000 * H), Some(10)), 9, "broken clock");
        assert_eq!(arrival(None, Some(9_000 * H), Some(10)), 10, "broken clock in the first line");
        assert_eq!(arrival(Some(9), Some(2 * H), Some(2 * H + 1)), 2 * H, "a real gap");
        assert_eq!(arrival(Some(9), Some(2 * H), None), 2 * H, "nobody to say otherwise");
        assert_eq!(arrival(Some(9), None, Some(10)), 9);
    }

    #[test]
    fn files_are_merged_by_time() {
        let dir = tempfile::tempdir().unwrap();
        let line = |ts: i64| format!("{{\"topic\":\"sysmon-logs\",\"ts\":{ts},\"value\":{{}}}}\n");
        std::fs::write(dir.path().join("b.ndjson"), [10, 30, 20, 50].map(line).concat()).unwrap();
        std::fs::write(dir.path().join("a.ndjson"), [25, 30, 60].map(line).concat()).unwrap();
        let mut playback = Playback::open(dir.path(), Framing::Envelope).unwrap();
        let mut got = Vec::new();
        while let Some(played) = playback.next_line().unwrap() {
            got.push((played.arrival_ms, played.line.file, played.line.line_no));
        }
        assert_eq!(got, [(10, 1, 0), (25, 0, 0), (30, 0, 1), (30, 1, 1), (30, 1, 2), (50, 1, 3), (60, 0, 2)]);
    }
}
