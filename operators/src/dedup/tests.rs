//! Dedup against a model that keeps every detection and looks at all of them each time.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use logster_schema::{KeyEdge, Peer};
use prometheus::Registry;
use proptest::prelude::*;
use timely::dataflow::operators::vec::Input as _;
use timely::dataflow::operators::{Inspect, Probe};

use super::*;

pub(crate) const CONFIG: DedupConfig = DedupConfig {
    min_threshold: 0.7,
    rules_from: RuleLevel::High,
    dedup_window_ms: 100,
    margin_ms: 40,
    retention_ms: 900,
    shards: 4,
    severity: SeverityThresholds::DEFAULT,
    max_alerts_per_shard: 1_000,
};

pub(crate) fn result(host: u8, platform: Platform, window_end: TimeMs, attack_prob: f64) -> InferenceResult {
    let endpoint = Endpoint::new(if host < 5 { "t" } else { "u" }, &format!("h{host}"));
    let seed = host as usize + window_end as usize;
    InferenceResult {
        inference_id: InferenceResult::id(&endpoint, platform, window_end, None, "m"),
        tenant_id: endpoint.tenant().into(),
        endpoint_id: endpoint.host().into(),
        platform,
        timestamp: window_end,
        window_start: window_end - 180,
        window_end,
        prediction: if attack_prob >= 0.5 { Prediction::Attack } else { Prediction::Benign },
        attack_prob,
        confidence: attack_prob,
        num_events: 10,
        num_nodes: 5,
        num_edges: 4,
        node_counts: BTreeMap::new(),
        edge_counts: BTreeMap::new(),
        model_version: format!("m{}", seed % 3),
        reason: None,
        backfill: false,
        opened_ms: None,
        sampled_out: 0,
        key_edges: vec![KeyEdge {
            sentence: format!("edge {seed}"),
            source: "a".into(),
            target: "b".into(),
            relation: "spawned".into(),
            first_seen: 0,
            last_seen: 1,
            count: 1,
            weight: 0.5,
        }],
        rules: vec![],
        ruleset: None,
        ttp_techniques: ["T1003", "T1021.002", "T1059.001"].into_iter().skip(seed % 4).map(str::to_owned).collect(),
        ttp_evidence: (seed % 4..3).map(|n| format!("evidence {seed} {n}")).collect(),
        peers: (0..seed % 3)
            .map(|n| Peer {
                local: None,
                remote: format!("10.0.0.{}", (seed + n) % 7),
                port: 445,
                first_seen: window_end - n as i64,
            })
            .collect(),
        local_addresses: vec![format!("10.0.0.{host}")],
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Detection(u64, Box<InferenceResult>),
    Transition(Transition),
}

impl Step {
    fn time(&self) -> u64 {
        match self {
            Self::Detection(time, _) => *time,
            Self::Transition(t) => t.arrival_ms as u64,
        }
    }
    pub(crate) fn feed(&self, core: &mut Dedup) {
        match self.clone() {
            Self::Detection(time, result) => core.on_detection(time, result),
            Self::Transition(transition) => core.on_transition(transition),
        }
    }
    fn order(&self) -> (u64, Order) {
        match self {
            Self::Detection(time, r) => (*time, Order::Detection(r.endpoint(), r.platform, r.inference_id.clone())),
            Self::Transition(t) => (self.time(), Order::Transition(t.partition, t.offset)),
        }
    }
}

const STATUSES: [AlertStatus; 5] = [
    AlertStatus::Open,
    AlertStatus::Acknowledged,
    AlertStatus::Investigating,
    AlertStatus::Resolved,
    AlertStatus::FalsePositive,
];

/// What rules found in a window: nothing, a rule that raises a detection, or one that does not: for its level, or
/// because an earlier window had the match.
fn rules(kind: usize, window_end: TimeMs) -> Vec<RuleMatch> {
    let rule = |id: &str, level, new| RuleMatch {
        rule_id: id.into(),
        title: id.to_uppercase(),
        level,
        techniques: vec![],
        count: 1 + new,
        new,
        first_seen: window_end - 7 * (window_end % 20),
        last_seen: window_end - 1,
        evidence: format!("at {window_end}"),
    };
    match kind {
        3 => vec![rule("a", RuleLevel::High, 1)],
        4 => vec![rule("b", RuleLevel::Medium, 2), rule("a", RuleLevel::High, 0)],
        5 => vec![rule("c", RuleLevel::Critical, 1), rule("b", RuleLevel::Medium, 0)],
        _ => vec![],
    }
}

/// Detections of some hosts, live and backfilled, and transitions on what they may have opened.
pub(crate) fn steps(hosts: &'static [u8]) -> impl Strategy<Value = Vec<Step>> {
    let detection =
        (prop::sample::select(hosts), prop::bool::weighted(0.1), 1_000u64..3_000, 0i64..400, 0usize..5, 0usize..6);
    let transition = (any::<prop::sample::Index>(), 0usize..5, 0u64..600);
    (prop::collection::vec(detection, 1..60), prop::collection::vec(transition, 0..20)).prop_map(|(ds, ts)| {
        let mut steps = BTreeMap::new();
        let mut detections = Vec::new();
        for (host, windows, time, back, prob, kind) in ds {
            let platform = if windows { Platform::Windows } else { Platform::Linux };
            let back = if back < 200 { 0 } else { back };
            let mut r = result(host, platform, time as i64 - back, [0.3, 0.72, 0.9, 0.9, 0.97][prob]);
            if back > 0 {
                r.backfill = true;
                r.opened_ms = Some(time as i64);
                r.inference_id = InferenceResult::id(&r.endpoint(), platform, r.window_end, r.opened_ms, "m");
            }
            if time % 10 == 0 {
                r.prediction = Prediction::Error;
            }
            r.rules = rules(kind, r.window_end);
            r.ruleset = Some(format!("v{}", time % 2));
            detections.push((time, r.clone()));
            let step = Step::Detection(time, Box::new(r));
            steps.insert(step.order(), step);
        }
        for (offset, (at, to, later)) in ts.into_iter().enumerate() {
            let (time, on) = at.get(&detections);
            let mut decision = AlertTransition {
                alert_id: Alert::id(&on.inference_id),
                tenant_id: on.tenant_id.clone(),
                endpoint_id: on.endpoint_id.clone(),
                to: STATUSES[to],
                actor: "ann".into(),
                note: format!("note {offset}"),
            };
            if later == 7 {
                decision.endpoint_id = "elsewhere".into();
            }
            let arrival_ms = (*time + later).max(later * 6) as i64;
            let step = Step::Transition(Transition { arrival_ms, partition: 0, offset: offset as i64, decision });
            steps.insert(step.order(), step);
        }
        steps.into_values().collect()
    })
}

fn is_by_model(r: &InferenceResult) -> bool {
    r.prediction != Prediction::Error && r.attack_prob >= 0.7
}

/// An alert as the list of what happened to it.
struct Naive {
    detections: Vec<(u64, InferenceResult)>,
    history: Vec<AppliedTransition>,
    changed: u64,
}

impl Naive {
    fn id(&self) -> String {
        Alert::id(&self.detections[0].1.inference_id)
    }
    fn status(&self) -> AlertStatus {
        self.history.last().map_or(AlertStatus::Open, |t| t.to)
    }
    fn build(&self) -> AlertUpdate {
        let all: Vec<&InferenceResult> = self.detections.iter().map(|(_, r)| r).collect();
        let top = all.iter().map(|r| r.attack_prob).fold(0.0, f64::max);
        let strongest = all.iter().find(|r| r.attack_prob == top).unwrap();
        let mut evidence = BTreeMap::new();
        for r in &all {
            for (technique, sentence) in r.ttp_techniques.iter().zip(&r.ttp_evidence) {
                evidence.entry(technique.clone()).or_insert(sentence.clone());
            }
        }
        let mut peers: BTreeMap<String, Peer> = BTreeMap::new();
        for peer in all.iter().flat_map(|r| &r.peers) {
            let slot = peers.entry(peer.remote.clone()).or_insert(peer.clone());
            slot.first_seen = slot.first_seen.min(peer.first_seen);
        }
        let severities = all.iter().map(|r| {
            let by_rules = r.rules.iter().filter(|m| m.new > 0 && m.level >= RuleLevel::High).map(|m| m.level).max();
            let by_rules = by_rules.map_or(Severity::Medium, |level| level.severity().unwrap());
            if is_by_model(r) { by_rules.max(Severity::of(r.attack_prob)) } else { by_rules }
        });
        let mut rules: BTreeMap<String, AlertRule> = BTreeMap::new();
        for m in all.iter().flat_map(|r| &r.rules) {
            let rule = rules.entry(m.rule_id.clone()).or_insert_with(|| AlertRule::from(m));
            let last_seen = rule.last_seen.max(m.last_seen);
            if m.first_seen < rule.first_seen {
                *rule = AlertRule::from(m);
            }
            rule.last_seen = last_seen;
        }
        let alert = Alert {
            alert_id: self.id(),
            revision: 0,
            tenant_id: all[0].tenant_id.clone(),
            endpoint_id: all[0].endpoint_id.clone(),
            platform: all[0].platform,
            status: self.status(),
            severity: severities.max().unwrap(),
            attack_prob: top,
            first_seen: all.iter().map(|r| r.window_start).min().unwrap(),
            last_seen: all.iter().map(|r| r.window_end).max().unwrap(),
            created_at: all[0].window_end,
            updated_at: self.changed as i64,
            detection_count: all.len() as u64,
            inference_ids: all.iter().map(|r| r.inference_id.clone()).collect(),
            reason: String::new(),
            key_edges: strongest.key_edges.clone(),
            rules: rules.into_values().collect(),
            ruleset: all.last().unwrap().ruleset.clone(),
            ttp_techniques: evidence.keys().cloned().collect(),
            ttp_explanation: String::new(),
            related_endpoints: vec![],
            incident_id: None,
            transitions: self.history.clone(),
            backfill: all.iter().all(|r| r.backfill),
            model_version: strongest.model_version.clone(),
        };
        AlertUpdate {
            active_from: all.iter().map(|r| r.window_end).min().unwrap(),
            last_detection: self.detections.last().unwrap().0 as i64,
            ttp_evidence: evidence,
            peers: peers.into_values().collect(),
            local_addresses: vec![format!("10.0.0.{}", &all[0].endpoint_id[1..])],
            alert,
        }
    }
}

type Said = (u64, String, Result<Box<AlertUpdate>, RefusedTransition>);

/// Takes every step in order, looks at everything each time.
fn oracle(steps: &[Step]) -> Vec<Said> {
    let mut steps = steps.to_vec();
    steps.sort_by_key(Step::order);
    let mut alerts: Vec<Naive> = Vec::new();
    let mut said: BTreeMap<(u64, String), AlertUpdate> = BTreeMap::new();
    let mut refused = Vec::new();
    for step in steps {
        let now = step.time();
        alerts.retain(|a| a.changed + CONFIG.retention_ms as u64 >= now);
        match step {
            Step::Detection(_, r)
                if !is_by_model(&r) && !r.rules.iter().any(|m| m.new > 0 && m.level >= RuleLevel::High) => {}
            Step::Detection(_, r) => {
                let mut best: Option<(i64, String, usize)> = None;
                for (n, a) in alerts.iter().enumerate() {
                    let first = &a.detections[0].1;
                    let recent = a.detections.last().unwrap().0 + 140 >= now;
                    let same = first.endpoint() == r.endpoint() && first.platform == r.platform;
                    let ends: Vec<i64> = a.detections.iter().map(|(_, d)| d.window_end).collect();
                    let (from, to) = (*ends.iter().min().unwrap(), *ends.iter().max().unwrap());
                    let inside = (from..=to).contains(&r.window_end);
                    let away = if inside { 0 } else { (r.window_end - from).abs().min((r.window_end - to).abs()) };
                    if same && recent && !a.status().is_closed() && away <= 100 {
                        let candidate = (away, a.id(), n);
                        best = Some(best.map_or(candidate.clone(), |b| b.min(candidate)));
                    }
                }
                let n = best.map_or(alerts.len(), |(_, _, n)| n);
                if n == alerts.len() {
                    alerts.push(Naive { detections: vec![], history: vec![], changed: now });
                }
                alerts[n].detections.push((now, *r));
                alerts[n].changed = now;
                said.insert((now, alerts[n].id()), alerts[n].build());
            }
            Step::Transition(t) => {
                let wanted = &t.decision;
                let found = alerts.iter_mut().find(|a| {
                    let of = &a.detections[0].1;
                    a.id() == wanted.alert_id
                        && of.tenant_id == wanted.tenant_id
                        && of.endpoint_id == wanted.endpoint_id
                });
                let Some(a) = found else {
                    let refusal = RefusedTransition { reason: Refusal::UnknownAlert, status: None, transition: t };
                    refused.push((now, String::new(), Err(refusal)));
                    continue;
                };
                let from = a.status();
                if !from.may_become(wanted.to) {
                    let reason = Refusal::IllegalTransition;
                    let refusal = RefusedTransition { reason, status: Some(from), transition: t };
                    refused.push((now, String::new(), Err(refusal)));
                    continue;
                }
                let (actor, note) = (wanted.actor.clone(), wanted.note.clone());
                a.history.push(AppliedTransition { at: now as i64, from, to: wanted.to, actor, note });
                a.changed = now;
                said.insert((now, a.id()), a.build());
            }
        }
    }
    let updates = said.into_iter().map(|((time, id), update)| (time, id, Ok(Box::new(update))));
    sorted(updates.chain(refused).collect())
}

fn sorted(mut said: Vec<Said>) -> Vec<Said> {
    said.sort_by_key(|(time, id, what)| {
        (*time, id.clone(), what.as_ref().err().map(|refused| refused.transition.offset))
    });
    said
}

fn collect(out: DedupOutput, said: &mut Vec<Said>) {
    for (time, change) in out.changes {
        if let AlertChange::Updated(update) = change {
            said.push((time, update.alert.alert_id.clone(), Ok(update)));
        }
    }
    said.extend(out.refused.into_iter().map(|(time, refused)| (time, String::new(), Err(refused))));
}

/// Nothing that the frontier has left behind is kept.
fn nothing_lingers(core: &Dedup, frontier: u64) {
    let mut mergeable = 0;
    for shard in 0..CONFIG.shards {
        for update in core.snapshot(shard) {
            assert!(update.alert.updated_at + CONFIG.retention_ms + 1 >= frontier as i64, "kept past its retention");
            let takes = !update.alert.status.is_closed()
                && update.last_detection + CONFIG.dedup_window_ms + CONFIG.margin_ms >= frontier as i64;
            mergeable += usize::from(takes);
        }
    }
    assert_eq!(core.sizes().1, mergeable, "takes detections past the window, or none within it");
    assert!(core.hold().is_none_or(|hold| hold >= frontier), "prompt");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_arrival_order_and_frontier_schedule_agree_with_the_oracle(
        steps in steps(&[0, 1, 5]),
        order in Just(()).prop_perturb(|_, mut rng| rng.next_u64()),
        cuts in prop::collection::btree_set(900u64..4_500, 0..12),
        restart_at in prop::collection::btree_set(0usize..12, 0..3),
    ) {
        let want = oracle(&steps);
        let mut core = Dedup::new(CONFIG);
        let mut said = Vec::new();
        // Early arrivals and shuffled ones: a pseudo-random order that respects nothing but the frontier.
        let mut waiting = steps.clone();
        waiting.sort_by_key(|step| content_hash(order, step));
        for (n, cut) in cuts.into_iter().enumerate() {
            let early = |step: &Step| step.time() < cut || content_hash(order, step).is_multiple_of(3);
            for step in waiting.extract_if(.., |step| early(step)) {
                step.feed(&mut core);
            }
            collect(core.on_frontier(Some(cut)), &mut said);
            nothing_lingers(&core, cut);
            if restart_at.contains(&n) {
                // Everything is replayed; what lies below the checkpoint is in it.
                let mut next = Dedup::new(CONFIG);
                for shard in 0..CONFIG.shards {
                    let bytes = serde_json::to_vec(&core.snapshot(shard)).unwrap();
                    next.restore(shard, cut, serde_json::from_slice(&bytes).unwrap());
                    prop_assert_eq!(next.snapshot(shard), core.snapshot(shard));
                }
                core = next;
                waiting = steps.clone();
                nothing_lingers(&core, cut);
            }
        }
        for step in waiting {
            step.feed(&mut core);
        }
        collect(core.on_frontier(None), &mut said);
        prop_assert_eq!(sorted(said), want);
    }
}

fn content_hash(seed: u64, step: &Step) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(format!("{:?}", step.order()).as_bytes(), seed)
}

fn one(core: &mut Dedup, step: Step) -> Vec<(u64, AlertChange)> {
    let time = step.time();
    step.feed(core);
    core.on_frontier(Some(time + 1)).changes
}

fn transition(on: &AlertUpdate, arrival_ms: i64, offset: i64, to: AlertStatus) -> Step {
    let Alert { alert_id, tenant_id, endpoint_id, .. } = on.alert.clone();
    let decision = AlertTransition { alert_id, tenant_id, endpoint_id, to, actor: "ann".into(), note: String::new() };
    Step::Transition(Transition { arrival_ms, partition: 0, offset, decision })
}

fn updated(changes: &[(u64, AlertChange)]) -> &AlertUpdate {
    match changes {
        [(_, AlertChange::Updated(update))] => update,
        other => panic!("one update expected: {other:?}"),
    }
}

#[test]
fn state_of_an_alert_is_bounded() {
    let mut core = Dedup::new(CONFIG);
    let mut last = Vec::new();
    for n in 0..300 {
        let mut r = result(0, Platform::Linux, 1_000 + n, 0.8);
        r.peers =
            (0..64).map(|p| Peer { local: None, remote: format!("10.{n}.0.{p}"), port: 1, first_seen: n }).collect();
        r.local_addresses = vec![format!("10.9.{n}.1")];
        r.ttp_techniques = vec![format!("T{n:04}")];
        last = one(&mut core, Step::Detection(1_000 + n as u64, Box::new(r)));
    }
    let update = updated(&last).clone();
    assert_eq!(update.alert.detection_count, 300);
    assert_eq!(update.alert.inference_ids.len(), MAX_INFERENCE_IDS);
    let newest = InferenceResult::id(&Endpoint::new("t", "h0"), Platform::Linux, 1_299, None, "m");
    assert_eq!(update.alert.inference_ids.last(), Some(&newest));
    assert_eq!(update.peers.len(), MAX_PEERS);
    assert_eq!(update.local_addresses.len(), MAX_LOCAL_ADDRESSES);
    assert_eq!((update.alert.ttp_techniques.len(), update.ttp_evidence.len()), (MAX_TECHNIQUES, MAX_TECHNIQUES));

    for n in 0..150 {
        let to = if n % 2 == 0 { AlertStatus::Resolved } else { AlertStatus::FalsePositive };
        transition(&update, 1_300, n, to).feed(&mut core);
    }
    let out = core.on_frontier(Some(1_301));
    assert_eq!(updated(&out.changes).alert.transitions.len(), MAX_TRANSITIONS);
    assert_eq!(out.refused.len(), 50);
    assert_eq!(out.refused[0].1.reason, Refusal::TooManyTransitions);
}

#[test]
fn a_closed_alert_stays_closed_and_a_new_one_starts() {
    let mut core = Dedup::new(CONFIG);
    let first =
        updated(&one(&mut core, Step::Detection(1_000, Box::new(result(0, Platform::Linux, 1_000, 0.8))))).clone();
    let closed = updated(&one(&mut core, transition(&first, 1_010, 0, AlertStatus::FalsePositive))).clone();
    assert_eq!(closed.alert.status, AlertStatus::FalsePositive);
    let second =
        updated(&one(&mut core, Step::Detection(1_020, Box::new(result(0, Platform::Linux, 1_020, 0.8))))).clone();
    assert_ne!(second.alert.alert_id, first.alert.alert_id);
    let corrected = updated(&one(&mut core, transition(&first, 1_030, 1, AlertStatus::Resolved))).clone();
    assert_eq!(corrected.alert.transitions.len(), 2);
    let third =
        updated(&one(&mut core, Step::Detection(1_040, Box::new(result(0, Platform::Linux, 1_040, 0.8))))).clone();
    assert_eq!(third.alert.alert_id, second.alert.alert_id);
    assert_eq!(third.alert.detection_count, 2);
}

#[test]
fn one_alert_too_many_forgets_the_one_that_changed_longest_ago() {
    let config = DedupConfig { shards: 1, max_alerts_per_shard: 3, ..CONFIG };
    let mut core = Dedup::new(config);
    let mut ids = Vec::new();
    for n in 0..5u8 {
        let time = 1_000 + u64::from(n);
        let changes = one(&mut core, Step::Detection(time, Box::new(result(n, Platform::Linux, time as i64, 0.8))));
        let AlertChange::Updated(update) = &changes[0].1 else { panic!() };
        ids.push(update.alert.alert_id.clone());
        match &changes[1..] {
            [] => assert!(n < 3),
            [(at, AlertChange::Forgotten { alert_id, .. })] => {
                assert_eq!((*at, alert_id), (time, &ids[n as usize - 3]));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(core.sizes(), (3, 3));
}

/// The shell on `workers` threads, inputs spread over them; everything said, sorted.
fn run(workers: usize, steps: &[Step], restored: Vec<RestoredShard>) -> Vec<Said> {
    let (send, receive) = mpsc::channel();
    let steps = steps.to_vec();
    let deadline = Instant::now() + Duration::from_secs(30);
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (index, peers) = (worker.index(), worker.peers());
        let metrics = DedupMetrics::new(&Registry::new()).unwrap();
        let (mut results, mut transitions, probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (results_in, results) = scope.new_input();
            let (transitions_in, transitions) = scope.new_input();
            let streams = dedup(results, transitions, CONFIG, restored.clone(), metrics);
            let (changes, refused) = (send.clone(), send.clone());
            let (probe, _) = streams
                .changes
                .inspect_batch(move |time, batch| {
                    let output = DedupOutput {
                        changes: batch.iter().map(|c| (*time, c.clone())).collect(),
                        ..Default::default()
                    };
                    changes.send(output).unwrap();
                })
                .probe();
            streams.refused.inspect_batch(move |time, batch| {
                let output =
                    DedupOutput { refused: batch.iter().map(|r| (*time, r.clone())).collect(), ..Default::default() };
                refused.send(output).unwrap();
            });
            (results_in, transitions_in, probe)
        });
        let mut mine: Vec<Step> = steps.iter().skip(index).step_by(peers).cloned().collect();
        mine.sort_by_key(Step::time);
        for step in mine {
            let time = step.time();
            results.advance_to(time);
            transitions.advance_to(time.saturating_sub(50));
            match step {
                Step::Detection(_, result) => results.send(*result),
                Step::Transition(transition) => transitions.send(transition),
            }
            worker.step();
        }
        results.close();
        transitions.close();
        while !probe.done() {
            assert!(Instant::now() < deadline, "a capability leaks");
            worker.step_or_park(Some(Duration::from_millis(1)));
        }
    });
    for guard in guards.unwrap().join() {
        guard.unwrap();
    }
    let mut said = Vec::new();
    for output in receive {
        collect(output, &mut said);
    }
    sorted(said)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn one_and_three_workers_agree_with_the_oracle(steps in steps(&[0, 1, 5]), cut in 900u64..3_500) {
        let want = oracle(&steps);
        prop_assert_eq!(&run(1, &steps, vec![]), &want);
        prop_assert_eq!(&run(3, &steps, vec![]), &want);
        // Restored at the cut, everything replayed: what was said below it is not said again.
        let mut core = Dedup::new(CONFIG);
        steps.iter().filter(|step| step.time() < cut).for_each(|step| step.feed(&mut core));
        core.on_frontier(Some(cut));
        let shards = 0..CONFIG.shards;
        let restored = shards.map(|shard| RestoredShard { shard, frontier: cut, alerts: core.snapshot(shard) }).collect();
        let rest: Vec<Said> = want.into_iter().filter(|(time, ..)| *time >= cut).collect();
        prop_assert_eq!(run(3, &steps, restored), rest);
    }
}
