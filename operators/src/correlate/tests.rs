//! Correlation against a model that compares every pair of alerts at every time and never forgets one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use logster_schema::{Alert, AlertStatus, AlertUpdate, Endpoint, Peer, Platform, RelatedEndpoint};
use prometheus::Registry;
use proptest::prelude::*;
use timely::dataflow::operators::vec::Input as _;
use timely::dataflow::operators::{Inspect, Probe};

use super::contact::Reach;
use super::*;
use crate::dedup::Dedup;
use crate::dedup::tests::{CONFIG as DEDUP, result, steps};
use crate::enrich::enrich;

const CONFIG: CorrelateConfig = CorrelateConfig {
    correlation_window_ms: 30,
    active_ms: 140,
    reach_back_ms: 400,
    shards: 4,
    max_live_per_tenant: 1_000,
    max_correlated_per_shard: 1_000,
};

type Changes = Vec<(u64, AlertChange)>;
type Published = Vec<(u64, Alert)>;

/// What dedup makes of some hosts' detections and transitions, until everything is forgotten.
fn changes() -> impl Strategy<Value = Changes> {
    steps(&[0, 1, 2, 3, 4, 5]).prop_map(|steps| {
        let mut core = Dedup::new(DEDUP);
        for step in steps {
            step.feed(&mut core);
        }
        core.on_frontier(Some(20_000)).changes
    })
}

/// Every alert, every pair, every time.
fn oracle(changes: &Changes) -> Published {
    let mut alerts: BTreeMap<String, (AlertUpdate, Option<Alert>)> = BTreeMap::new();
    let mut published = Vec::new();
    let times: BTreeSet<u64> = changes.iter().map(|(time, _)| *time).collect();
    for now in times {
        for (_, change) in changes.iter().filter(|(time, _)| *time == now) {
            if let AlertChange::Updated(update) = change {
                let last = alerts.remove(change.alert_id()).and_then(|(_, last)| last);
                alerts.insert(change.alert_id().to_owned(), ((**update).clone(), last));
            }
        }
        let linked = |a: &AlertUpdate, b: &AlertUpdate| {
            let counts = |u: &AlertUpdate| u.alert.status != AlertStatus::FalsePositive;
            let gap = (a.active_from - b.alert.last_seen).max(b.active_from - a.alert.last_seen);
            a.alert.tenant_id == b.alert.tenant_id
                && a.alert.endpoint_id != b.alert.endpoint_id
                && counts(a)
                && counts(b)
                && gap <= CONFIG.correlation_window_ms
        };
        let mut label: BTreeMap<&String, &String> = alerts.keys().map(|id| (id, id)).collect();
        loop {
            let before = label.clone();
            for (a, (ua, _)) in &alerts {
                for (b, (ub, _)) in &alerts {
                    if linked(ua, ub) {
                        let least = label[a].min(label[b]);
                        label.insert(a, least);
                        label.insert(b, least);
                    }
                }
            }
            if label == before {
                break;
            }
        }
        let mut next = BTreeMap::new();
        for (id, (update, last)) in &alerts {
            let mut alert = update.alert.clone();
            for (other, _) in alerts.values().filter(|(other, _)| linked(update, other)) {
                let contact = Reach::of(update).contact(&Reach::of(other));
                let seconds = (other.alert.created_at - alert.created_at) / 1000;
                assert_eq!(seconds, 0, "the test's times are close");
                alert.related_endpoints.push(RelatedEndpoint {
                    endpoint_id: other.alert.endpoint_id.clone(),
                    alert_id: other.alert.alert_id.clone(),
                    lateral_movement: contact.is_some(),
                    evidence: contact.map_or("alerted at the same time".to_owned(), |c| c.sentence),
                });
                alert.incident_id = Some(label[id].clone());
            }
            alert.related_endpoints.sort();
            enrich(&mut alert, &update.ttp_evidence);
            let mut as_last = alert.clone();
            if let Some(last) = last {
                (as_last.revision, as_last.updated_at) = (last.revision, last.updated_at);
            }
            if last.as_ref() != Some(&as_last) {
                alert.revision = last.as_ref().map_or(1, |last| last.revision + 1);
                alert.updated_at = now as i64;
                published.push((now, alert.clone()));
                next.insert(id.clone(), alert);
            }
        }
        for (id, alert) in next {
            alerts.get_mut(&id).unwrap().1 = Some(alert);
        }
    }
    sorted(published)
}

fn sorted(mut published: Published) -> Published {
    published.sort_by(|a, b| (a.0, &a.1.alert_id).cmp(&(b.0, &b.1.alert_id)));
    published
}

/// The shell on `workers` threads, changes spread over them: everything said, by time.
fn run(
    workers: usize,
    changes: &Changes,
    config: CorrelateConfig,
    restored: Vec<RestoredTenants>,
) -> Vec<(u64, TenantChange)> {
    let (send, receive) = mpsc::channel();
    let changes = changes.clone();
    let deadline = Instant::now() + Duration::from_secs(60);
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (index, peers) = (worker.index(), worker.peers());
        let metrics = CorrelateMetrics::new(&Registry::new()).unwrap();
        let (mut input, probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (input, stream) = scope.new_input();
            let send = send.clone();
            let (probe, _) = correlate(stream, config, restored.clone(), metrics)
                .inspect_time(move |time, change| send.send((*time, change.clone())).unwrap())
                .probe();
            (input, probe)
        });
        for (n, (time, change)) in changes.iter().enumerate() {
            if n % peers == index {
                input.advance_to(*time);
                input.send(change.clone());
            }
            if n % 7 == 0 {
                worker.step();
            }
        }
        input.close();
        while !probe.done() {
            assert!(Instant::now() < deadline, "a capability leaks");
            worker.step_or_park(Some(Duration::from_millis(1)));
        }
    });
    for guard in guards.unwrap().join() {
        guard.unwrap();
    }
    let mut said: Vec<(u64, TenantChange)> = receive.into_iter().collect();
    said.sort_by_key(|(time, _)| *time); // stable: what one worker said of an alert keeps its order
    said
}

fn published(said: &[(u64, TenantChange)]) -> Published {
    let records = said.iter().filter(|(_, change)| change.published);
    sorted(records.map(|(time, change)| (*time, change.state.as_ref().unwrap().update.alert.clone())).collect())
}

/// What a checkpoint holds after these changes.
fn states(said: &[(u64, TenantChange)], states: &mut BTreeMap<(u32, String), TrackedAlert>) {
    for (_, change) in said {
        let key = (change.shard, change.alert_id.clone());
        match &change.state {
            Some(state) => states.insert(key, (**state).clone()),
            None => states.remove(&key),
        };
    }
}

fn checkpoint(states: &BTreeMap<(u32, String), TrackedAlert>, frontier: u64) -> Vec<RestoredTenants> {
    let shards = 0..CONFIG.shards;
    let alerts = |shard| states.iter().filter(move |((s, _), _)| *s == shard).map(|(_, state)| state.clone()).collect();
    let tenants = shards.map(|shard| RestoredTenants { shard, frontier, alerts: alerts(shard) });
    let bytes = serde_json::to_vec(&tenants.collect::<Vec<_>>()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_and_three_workers_agree_with_the_oracle(changes in changes()) {
        let want = oracle(&changes);
        for workers in [1, 3] {
            let said = run(workers, &changes, CONFIG, vec![]);
            prop_assert_eq!(&published(&said), &want, "workers: {}", workers);
            let mut kept = BTreeMap::new();
            states(&said, &mut kept);
            prop_assert!(kept.is_empty(), "nothing lingers once all is forgotten: {:?}", kept.keys());
        }
    }

    #[test]
    fn restarts_publish_nothing_twice_and_go_on_counting(
        changes in changes(),
        cuts in prop::collection::btree_set(1_000u64..4_500, 1..4),
        replay in 0u64..500,
    ) {
        let mut kept = BTreeMap::new();
        let mut got = Vec::new();
        let mut from = 0;
        for (n, cut) in cuts.into_iter().chain([u64::MAX]).enumerate() {
            // The outbox may reach back below the checkpoint: what is there must not count again.
            let input = changes.iter().filter(|(t, _)| (from.max(replay) - replay..cut).contains(t)).cloned().collect();
            let said = run([1, 3, 2][n % 3], &input, CONFIG, if from == 0 { vec![] } else { checkpoint(&kept, from) });
            prop_assert!(said.iter().all(|(time, _)| *time >= from));
            states(&said, &mut kept);
            got.extend(published(&said));
            from = cut;
        }
        prop_assert_eq!(got, oracle(&changes));
        prop_assert!(kept.is_empty());
    }
}

/// A detection of `host` at `time`, as dedup would send it.
fn opened(host: &str, time: i64, status: AlertStatus) -> (u64, AlertChange) {
    let mut r = result(0, Platform::Linux, time, 0.9);
    r.endpoint_id = host.to_owned();
    r.inference_id = logster_schema::InferenceResult::id(&Endpoint::new("t", host), Platform::Linux, time, None, "m");
    (r.peers, r.local_addresses) = (vec![], vec![format!("10.1.0.{}", host.len())]);
    let mut core = Dedup::new(DEDUP);
    core.on_detection(time as u64, Box::new(r));
    let mut change = core.on_frontier(None).changes.remove(0);
    if let AlertChange::Updated(update) = &mut change.1 {
        update.alert.status = status;
    }
    change
}

fn again(change: &(u64, AlertChange), time: u64, edit: impl FnOnce(&mut AlertUpdate)) -> (u64, AlertChange) {
    let mut change = change.clone();
    if let AlertChange::Updated(update) = &mut change.1 {
        edit(update);
    }
    (time, change.1)
}

#[test]
fn a_false_positive_splits_its_incident_and_its_correction_joins_it_again() {
    use AlertStatus::{FalsePositive, Open, Resolved};
    // a and c are 50 apart: only b, in between, holds them together.
    let (a, b, c) = (opened("a", 1_000, Open), opened("b", 1_025, Open), opened("c", 1_050, Open));
    let refuted = again(&b, 1_100, |update| update.alert.status = FalsePositive);
    let corrected = again(&b, 1_200, |update| update.alert.status = Resolved);
    let said = published(&run(1, &vec![a.clone(), b.clone(), c.clone(), refuted, corrected], CONFIG, vec![]));
    let at = |time: u64| -> Vec<(&str, usize, bool, u64)> {
        let mut at: Vec<_> = said
            .iter()
            .filter(|(t, _)| *t == time)
            .map(|(_, a)| (&*a.endpoint_id, a.related_endpoints.len(), a.incident_id.is_some(), a.revision))
            .collect();
        at.sort();
        at
    };
    assert_eq!(at(1_000), [("a", 0, false, 1)]);
    assert_eq!(at(1_025), [("a", 1, true, 2), ("b", 1, true, 1)]);
    let least = [&a, &b, &c].map(|change| change.1.alert_id().to_owned()).into_iter().min();
    assert!(said.iter().filter(|(t, _)| *t == 1_050 || *t == 1_200).all(|(_, a)| a.incident_id == least));
    assert_eq!(at(1_050).last(), Some(&("c", 1, true, 1)));
    let split: Vec<_> = at(1_100).into_iter().map(|(host, related, incident, _)| (host, related, incident)).collect();
    assert_eq!(split, [("a", 0, false), ("b", 0, false), ("c", 0, false)]);
    let joined: Vec<_> = at(1_200).into_iter().map(|(host, related, incident, _)| (host, related, incident)).collect();
    assert_eq!(joined, [("a", 1, true), ("b", 2, true), ("c", 1, true)]);
}

/// Dedup forgets early when a shard is full: as long as a new alert may come close, that changes nothing.
#[test]
fn a_forgotten_alert_stays_in_its_incident() {
    let [a, b, c] =
        [("a", 1_000), ("b", 1_020), ("c", 2_000)].map(|(host, time)| opened(host, time, AlertStatus::Open));
    let forget = |of: &(u64, AlertChange), time| {
        let (alert_id, tenant_id) = (of.1.alert_id().to_owned(), "t".to_owned());
        (time, AlertChange::Forgotten { alert_id, tenant_id, endpoint_id: of.1.endpoint().host().to_owned() })
    };
    let input = vec![a.clone(), forget(&a, 1_010), b.clone(), c.clone(), forget(&c, 2_010), forget(&b, 2_020)];
    let said = run(1, &input, CONFIG, vec![]);
    let related = |(time, alert): (u64, Alert)| (time, alert.endpoint_id, alert.related_endpoints.len());
    let records: Vec<_> = published(&said).into_iter().map(related).collect();
    let mut want = vec![(1_000, "a", 0), (1_020, "a", 1), (1_020, "b", 1), (2_000, "c", 0)];
    want.sort_by_key(|(time, host, _)| {
        (
            *time,
            [&a, &b, &c]
                .map(|x| x.1.clone())
                .iter()
                .find(|x| x.endpoint().host() == *host)
                .unwrap()
                .alert_id()
                .to_owned(),
        )
    });
    assert_eq!(records.iter().map(|(time, host, n)| (*time, host.as_str(), *n)).collect::<Vec<_>>(), want);
    // The run of a and b is over when both are forgotten; c could still be linked with a late window.
    let mut kept = BTreeMap::new();
    states(&said, &mut kept);
    let kept: Vec<_> = kept.values().map(|state| (state.update.alert.endpoint_id.as_str(), state.forgotten)).collect();
    assert_eq!(kept, [("c", true)]);
}

#[test]
fn contact_makes_a_link_lateral_movement_and_says_how() {
    let a = opened("web01", 1_000, AlertStatus::Open);
    let b = opened("db01.corp", 1_020, AlertStatus::Open);
    let peers = [("127.0.0.1", 445), ("10.1.0.9", 5432), ("224.0.0.251", 5353)];
    let reached = again(&a, 1_010, |update| {
        update.peers = peers
            .map(|(remote, port)| Peer { local: Some("10.1.0.5".into()), remote: remote.into(), port, first_seen: 900 })
            .to_vec();
    });
    let said = published(&run(2, &vec![a, reached, b], CONFIG, vec![]));
    let last: BTreeMap<_, _> = said.into_iter().map(|(_, alert)| (alert.endpoint_id.clone(), alert)).collect();
    let sentence = "web01 (10.1.0.5) connected to db01.corp (10.1.0.9) port 5432 at 1970-01-01T00:00:00.900Z";
    for (host, other) in [("web01", "db01.corp"), ("db01.corp", "web01")] {
        let [related] = last[host].related_endpoints.as_slice() else { panic!("{:?}", last[host]) };
        assert_eq!((related.endpoint_id.as_str(), related.lateral_movement), (other, true));
        assert_eq!(related.evidence, sentence);
        assert!(last[host].reason.contains(sentence), "{}", last[host].reason);
    }
}

#[test]
fn an_outbreak_is_bounded() {
    let config = CorrelateConfig { max_live_per_tenant: 40, ..CONFIG };
    let hosts: Changes = (0..60).map(|n| opened(&format!("h{n}"), 1_000, AlertStatus::Open)).collect();
    let said = published(&run(2, &hosts, config, vec![]));
    assert_eq!(said.len(), 60, "one record each: all at the same time");
    let correlated = said.iter().filter(|(_, alert)| alert.incident_id.is_some()).count();
    assert_eq!(correlated, 40);
    assert!(said.iter().all(|(_, alert)| [0, MAX_RELATED].contains(&alert.related_endpoints.len())));
    let incidents: BTreeSet<_> = said.iter().filter_map(|(_, alert)| alert.incident_id.clone()).collect();
    assert_eq!(incidents.len(), 1);
}
