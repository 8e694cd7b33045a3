//! What a search begins with: the log, and how wide the runs may be.

use crate::broken::Broken;
use crate::model::PARTS;

/// A raw record: arrival by its broker, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Record(pub i8, pub What);

#[derive(Clone, Copy, Debug)]
pub enum What {
    /// An event of a shard's endpoint, with its own time.
    Event(usize, i8),
    /// An analyst closes the alert of shard 0.
    Close,
}

/// What the search begins with.
pub struct Scenario {
    pub name: &'static str,
    pub logs: Vec<Vec<Record>>,
    /// Records there from the beginning; the others appear at any time.
    pub visible: [u8; PARTS],
    /// Widths that each run may have.
    pub widths: Vec<Vec<u8>>,
    /// Values that a floor may take.
    pub floors: Vec<i8>,
    /// Last time.
    pub last: u8,
    /// Whether a run decides the scores of shard 0's windows anew.
    pub coins: bool,
    /// A partition that is not there at first.
    pub appears: Option<usize>,
}

use What::{Close, Event};

impl Scenario {
    /// Each looks at some rules closely and at the others in passing.
    pub fn all() -> Vec<Self> {
        let base = || Self {
            name: "",
            logs: vec![vec![Record(0, Event(0, 0))]],
            visible: [1, 0, 0],
            widths: vec![vec![2], vec![1, 3]],
            floors: vec![3],
            last: 1,
            coins: false,
            appears: None,
        };
        vec![
            // Three runs of any width, little data.
            Self { name: "start", widths: vec![vec![1, 2]; 3], last: 0, ..base() },
            // Records that come late: below a floor, then late enough for the backfill, then from the future.
            Self {
                name: "floors",
                logs: vec![vec![Record(0, Event(0, 0)), Record(1, Event(0, 1))], vec![Record(0, Event(1, 0))]],
                visible: [1, 0, 0],
                floors: vec![3, 5],
                last: 2,
                ..base()
            },
            Self {
                name: "skew",
                logs: vec![vec![Record(0, Event(0, 3)), Record(5, Event(0, 5))], vec![]],
                visible: [2, 0, 0],
                floors: vec![4, 6],
                last: 3,
                ..base()
            },
            Self {
                name: "backlog",
                logs: vec![
                    vec![Record(3, Event(0, 0)), Record(4, Event(0, 0)), Record(5, Event(0, 0))],
                    vec![Record(1, Event(1, 1))],
                ],
                visible: [3, 1, 0],
                widths: vec![vec![1], vec![2]],
                floors: vec![5, 7],
                last: 4,
                ..base()
            },
            // Scores that differ, an alert that is fed, closed and opened again, and the tenant behind it.
            Self {
                name: "alerts",
                logs: vec![vec![Record(0, Event(0, 0))], vec![Record(1, Event(1, 1))], vec![Record(2, Close)]],
                visible: [1, 1, 0],
                floors: vec![5],
                last: 2,
                coins: true,
                ..base()
            },
            Self {
                name: "partition",
                logs: vec![vec![Record(1, Event(0, 1))], vec![Record(0, Event(0, 0)), Record(1, Event(0, 1))]],
                visible: [1, 0, 0],
                widths: vec![vec![1, 2], vec![1, 2]],
                floors: vec![5],
                last: 2,
                appears: Some(1),
                ..base()
            },
        ]
    }

    /// Whether a rule shows in this scenario at all: others would only be searched for nothing.
    pub fn tells(&self, broken: Broken) -> bool {
        use Broken::*;
        match broken {
            GenerationBeforeFence | SurplusNotFenced | NoBarrier | NoLock | ReadBeforeFenced | FencedStaysDown => {
                self.name == "start"
            }
            TransitionsNeverIdle | ReleasedEarly | DedupNotCarried | OutboxPrunedEarly | TenantAhead
            | TenantNotCarried => self.name == "alerts",
            OpeningsNotCarried => self.name == "backlog",
            NewWithoutFloor | NewFloorIsFrontier | ListedBeforeFenced => self.name == "partition",
            ReplayWithoutSkew | ReplayUncommitted | FloorBeforeEnd | NewUncommitted => self.name == "skew",
            _ => self.name == "floors",
        }
    }
}
