//! A model of the exactly-once protocol, searched breadth first: every order of steps, up to three runs of up to
//! three workers, every rule taken out in turn.
//!
//! The model knows the log, what is committed, and runs. **A run never crashes: it just takes no more steps, and
//! another may start at any time**, so every worker of an earlier run is a zombie that may go on at any moment. A
//! run's memory is what its start read plus what it committed since; windows are rebuilt from the records that a
//! replay gives it, so a record that the replay misses is missing.
//!
//! In it: several partitions and workers, idle floors, lateness and skew above 0 ([`model`]), backfill
//! windows whose opening is carried in the shard's checkpoint, dedup state, analysts' transitions, the tenant stage
//! with its outbox, scores that differ from run to run, partitions that appear. Not in it: Kafka's own faults,
//! retention, time-outs, the bounds on queues (rule 12's bound on the outbox), more than one alert of an endpoint.
//!
//! # Invariants
//! - **Once**: each record's event, each time of each shard and each time of the tenants is written once, in order.
//! - **Content**: a committed window holds exactly the live records that its time covers, by their committed
//!   arrivals; a backfill window exactly those that arrived while it was open.
//! - **Alerts** follow from committed results and transitions, **incidents** from committed alerts.
//! - **Mutex**: once a run has read the checkpoints, no worker of an earlier one can commit.
//! - **Progress**: where nothing more can happen, one run is alive and everything is written, or nobody is and the
//!   one whose generation is the latest is restarted. Never are two alive.
//!
//! ```text
//! cargo test --release -p logster-dataflow --test protocol_model -- --nocapture     # prints the table
//! ```

mod broken;
mod model;
mod scenario;
mod search;

use broken::Broken;
use scenario::Scenario;
use search::{Found, search};

#[test]
fn the_protocol_holds_and_without_any_rule_it_does_not() {
    let scenarios = Scenario::all();
    for scenario in &scenarios {
        let Found { states, story, .. } = search(scenario, None);
        println!("{:<12} {states:>8} states", scenario.name);
        assert_eq!(story, Vec::<String>::new(), "{}", scenario.name);
    }
    let mut unfound = Vec::new();
    for (broken, rule, what) in Broken::ALL {
        let shortest = scenarios
            .iter()
            .filter(|scenario| scenario.tells(broken))
            .map(|scenario| (scenario.name, search(scenario, Some(broken))))
            .filter(|(_, found)| !found.story.is_empty())
            .min_by_key(|(_, found)| found.story.len());
        match shortest {
            Some((scenario, found)) => {
                println!("\nrule {rule}: {what}\n  {} ({scenario}, {} states)", found.why, found.states);
                found.story.iter().for_each(|step| println!("    {step}"));
            }
            None => unfound.push(what),
        }
    }
    assert_eq!(unfound, Vec::<&str>::new(), "not found out");
}
