use logster_schema::{Activity, Fields, Kind, RawTopic};
use proptest::prelude::*;

use super::*;

/// A pane that remembers which records it was made of.
#[derive(Debug, PartialEq)]
struct Seen(Vec<i64>);
impl Pane for Seen {
    fn seal(_: Platform, observations: &[Observation]) -> Self {
        Self(observations.iter().map(|o| o.position.offset).collect())
    }
}

const CONFIG: WindowConfig =
    WindowConfig { width_ms: 60, hop_ms: 20, max_lateness_ms: 10, max_events: 3_000, max_open_backfill: 5 };

fn observation(host: u8, time: i64, arrival: i64, offset: i64) -> Observation {
    let lane = if time < arrival - CONFIG.max_lateness_ms { Lane::Backfill } else { Lane::Live };
    Observation {
        endpoint: Endpoint::new("t", &format!("h{host}")),
        platform: Platform::Linux,
        time_ms: time,
        arrival_ms: arrival,
        lane,
        position: Position { topic: RawTopic::Auditd, partition: 0, offset },
        activity: Activity { kind: Kind::Opaque, fields: Fields::default() },
        rules: hits(offset),
    }
}

/// Every third record matches a rule, some of them two.
#[allow(clippy::box_collection, reason = "as in the record")]
fn hits(offset: i64) -> Option<Box<Vec<RuleHit>>> {
    let hit = |rule| RuleHit { rule, evidence: format!("record {offset}") };
    let hits: Vec<RuleHit> =
        [(3, 0), (6, 1), (9, 7)].iter().filter(|(n, _)| offset % n == 0).map(|(_, r)| hit(*r)).collect();
    (!hits.is_empty()).then(|| Box::new(hits))
}

type Out = (TimeMs, String, TimeMs, Option<TimeMs>, Vec<i64>, Vec<(PaneMatch, u64)>);

fn out(w: ClosedWindow<Seen>) -> Out {
    let rules = w.rules().into_values().collect();
    let mut seen: Vec<i64> = w.panes.iter().flat_map(|p| p.content.0.clone()).collect();
    seen.sort_unstable();
    (w.emit_ms, w.endpoint.key().to_owned(), w.end_ms, w.opened_ms, seen, rules)
}

/// What rules found among `events`, of which those from `fresh_from` on are new.
fn matched<'a>(events: impl Iterator<Item = &'a Observation>, fresh_from: TimeMs) -> Vec<(PaneMatch, u64)> {
    let mut events: Vec<&Observation> = events.collect();
    events.sort_by_key(|o| o.order());
    let mut found: BTreeMap<u32, (PaneMatch, u64)> = BTreeMap::new();
    for o in events {
        for hit in hits(o.position.offset).into_iter().flat_map(|hits| *hits) {
            let RuleHit { rule, evidence } = hit;
            let new = PaneMatch { rule, count: 0, first_ms: o.time_ms, last_ms: o.time_ms, evidence };
            let (all, fresh) = found.entry(rule).or_insert((new, 0));
            all.count += 1;
            all.last_ms = o.time_ms;
            *fresh += u64::from(o.time_ms >= fresh_from);
        }
    }
    found.into_values().collect()
}

/// Live windows by definition: every tick of the grid with activity, and what it covers.
fn oracle(log: &[Observation]) -> Vec<Out> {
    let mut ends = BTreeSet::new();
    for o in log.iter().filter(|o| o.lane == Lane::Live) {
        for end in o.time_ms + 1..=o.time_ms + CONFIG.width_ms {
            if (end - o.endpoint.phase_ms(CONFIG.hop_ms)).rem_euclid(CONFIG.hop_ms) == 0 {
                ends.insert((end, o.endpoint.clone()));
            }
        }
    }
    ends.into_iter()
        .map(|(end, endpoint)| {
            let inside = |o: &&Observation| {
                o.lane == Lane::Live && o.endpoint == endpoint && (end - CONFIG.width_ms..end).contains(&o.time_ms)
            };
            let mut seen: Vec<i64> = log.iter().filter(inside).map(|o| o.position.offset).collect();
            seen.sort_unstable();
            let rules = matched(log.iter().filter(inside), end - CONFIG.hop_ms);
            (end, endpoint.key().to_owned(), end, None, seen, rules)
        })
        .collect()
}

/// Plays a log with the watermark advanced at `cuts` (indices), delivering in the order of `shuffle`.
fn play(log: &[Observation], cuts: &[usize], fuel: usize, reverse: bool) -> Vec<Out> {
    let mut core = Windows::<Seen>::new(CONFIG);
    let mut got = Vec::new();
    let mut from = 0;
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (log.len() + 1)).collect();
    cuts.sort_unstable();
    let drain = |core: &mut Windows<Seen>, frontier, got: &mut Vec<Out>| loop {
        let held = core.hold();
        let closed = core.on_frontier(frontier, fuel);
        assert!(closed.iter().all(|w| held.is_some_and(|h| h <= w.emit_ms)), "emits only at held times");
        let done = closed.len() < fuel;
        got.extend(closed.into_iter().map(out));
        if done {
            assert!(!core.is_due(frontier));
            // Prompt: the shell goes on from what is held.
            assert!(core.hold().is_none_or(|hold| frontier.is_some_and(|f| hold > f)));
            break;
        }
    };
    for cut in cuts {
        let mut batch: Vec<_> = log[from.min(cut)..cut].to_vec();
        from = from.max(cut);
        if reverse {
            batch.reverse();
        }
        for o in batch {
            core.on_event(o, TimeMs::MIN / 2);
        }
        if let Some(last) = log[..cut].last() {
            drain(&mut core, Some(last.arrival_ms - CONFIG.max_lateness_ms), &mut got);
        }
    }
    for o in &log[from..] {
        core.on_event(o.clone(), TimeMs::MIN / 2);
    }
    drain(&mut core, None, &mut got);
    assert_eq!(core.hold(), None, "nothing lingers");
    assert_eq!((core.active_keys(), core.backfill.len()), (0, 0));
    got.sort();
    got
}

fn log() -> impl Strategy<Value = Vec<Observation>> {
    prop::collection::vec((0..3u8, 0..30i64, prop_oneof![4 => -10..=10i64, 1 => -200..-10i64]), 0..60).prop_map(
        |steps| {
            let mut arrival = 1_000;
            steps
                .into_iter()
                .enumerate()
                .map(|(i, (host, gap, offset))| {
                    arrival += gap;
                    observation(host, arrival + offset, arrival, i as i64)
                })
                .collect()
        },
    )
}

proptest! {
    #[test]
    fn any_schedule_gives_the_oracle(log in log(), cuts in prop::collection::vec(0..100usize, 0..8), fuel in 1..5usize, reverse: bool) {
        let got = play(&log, &cuts, fuel, reverse);
        let live: Vec<Out> = got.iter().filter(|o| o.3.is_none()).cloned().collect();
        prop_assert_eq!(live, oracle(&log));
        prop_assert_eq!(&got, &play(&log, &[], usize::MAX, false), "backfill depends on the log alone");
        // Every backfill record is in exactly width/hop windows, and in no live one.
        for o in log.iter().filter(|o| o.lane == Lane::Backfill) {
            let of = got.iter().filter(|w| w.4.contains(&o.position.offset)).collect::<Vec<_>>();
            prop_assert_eq!(of.len() as i64, CONFIG.panes());
            prop_assert!(of.iter().all(|w| w.3.is_some_and(|opened| opened <= o.arrival_ms)));
        }
        // Live or backfill, a match is new in exactly one window.
        for rule in [0, 1, 7] {
            let new: u64 = got.iter().flat_map(|w| &w.5).filter(|(m, _)| m.rule == rule).map(|(_, new)| new).sum();
            let all = log.iter().filter_map(|o| o.rules.as_ref()).flat_map(|hits| hits.iter());
            prop_assert_eq!(new, all.filter(|hit| hit.rule == rule).count() as u64);
        }
        // Host, end and opening are what a window's id is made of.
        let ids: BTreeSet<_> = got.iter().map(|w| (&w.1, w.2, w.3)).collect();
        prop_assert_eq!(ids.len(), got.len());
    }

    /// Stop at any frontier, replay what the checkpoint asks for: the rest comes out the same.
    #[test]
    fn recovery_gives_the_rest(log in log(), cut in 0..60usize) {
        let whole = play(&log, &[], usize::MAX, false);
        let cut = cut.min(log.len());
        let mut core = Windows::<Seen>::new(CONFIG);
        for o in &log[..cut] {
            core.on_event(o.clone(), TimeMs::MIN / 2);
        }
        let f = log[..cut].last().map_or(0, |o| o.arrival_ms - CONFIG.max_lateness_ms);
        // Exactly what is below the frontier is written, and in the snapshot.
        let mut written: Vec<Out> = core.on_frontier(Some(f - 1), usize::MAX).into_iter().map(out).collect();
        let snapshot = core.backlog_snapshot();
        // As the source replays: a width and the skew. Open backfill windows opened at most a width ago.
        let from = f - CONFIG.width_ms - 10;
        let mut core = Windows::<Seen>::new(CONFIG);
        for entry in snapshot {
            if !entry.backlog.is_empty() {
                core.restore_backlog(entry);
            }
        }
        for o in log.iter().filter(|o| o.arrival_ms >= from) {
            core.on_event(o.clone(), f);
        }
        written.extend(core.on_frontier(None, usize::MAX).into_iter().map(out));
        written.sort();
        prop_assert_eq!(written, whole);
    }
}

#[test]
fn over_budget_keeps_a_set_of_the_log() {
    let config = WindowConfig { max_events: 30, ..CONFIG };
    let sample = |reverse: bool| {
        let mut log: Vec<_> = (0..500).map(|i| observation(0, 1_000 + i % 3, 1_003, i)).collect();
        if reverse {
            log.reverse();
        }
        let mut core = Windows::<Seen>::new(config);
        log.into_iter().for_each(|o| core.on_event(o, TimeMs::MIN / 2));
        let mut closed = core.on_frontier(None, usize::MAX);
        assert_eq!((closed[1].events(), closed[1].sampled_out()), (500, 490));
        out(closed.remove(1))
    };
    assert_eq!(sample(false).4.len(), 10);
    assert_eq!(sample(false).5[0].0.count, 167, "of all 500 records, sampled out or not");
    assert_eq!(sample(false), sample(true));
}
