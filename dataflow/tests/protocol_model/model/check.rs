//! The invariants.

use super::*;

impl Model<'_> {
    /// What must hold in every state.
    pub fn check(&self, state: &State) -> Result<(), String> {
        self.check_mutex(state)?;
        let out = &state.outputs;
        // Backfill windows follow from all records of an endpoint: they can be told when all are written.
        let all_written =
            (0..PARTS).all(|p| self.records(p).iter().enumerate().all(|(o, _)| out.events[p][o] != NEVER));
        for shard in 0..SHARDS {
            let mut want = State::new(self.scenario).committed.shards[shard];
            let mut transitions_known = true;
            for time in 0..out.frontiers[shard] {
                let written = out.shards[shard][time as usize];
                let known = self.bits(shard, &out.events, |_, _, _| true);
                let (mut should, content) = self.step_shard(&want, shard, &out.events, written.attack);
                if written.live & known != content.live {
                    let (has, fits) = (written.live, content.live);
                    return Err(format!(
                        "CONTENT: window {time} of shard {shard} holds {has:b}, committed events {fits:b}"
                    ));
                }
                if all_written && written.backfill != content.backfill {
                    let (has, fits) = (written.backfill, content.backfill);
                    return Err(format!(
                        "CONTENT: backfill {time} of shard {shard} holds {has:b}, committed events {fits:b}"
                    ));
                }
                // Alerts follow from what is written, whatever that is.
                let unknown = (0..self.records(TRANSITIONS).len()).any(|o| out.events[TRANSITIONS][o] == NEVER);
                transitions_known &= shard != 0 || !unknown;
                let closes = shard == 0 && self.closes_at(&out.events[TRANSITIONS], time as i8);
                let mut alert = want;
                let update = dedup(&mut alert, &written, closes, time);
                if transitions_known && update != written.update {
                    return Err(format!(
                        "ALERT: {:x} at {time} of shard {shard}, results give {update:x}",
                        written.update
                    ));
                }
                (should.open, should.alert, should.count, should.last) =
                    (alert.open, alert.alert, alert.count, alert.last);
                want = should;
            }
        }
        let mut count = 0;
        for time in 0..out.tenant.min(out.frontiers[0]).min(out.frontiers[1]) as usize {
            let updates = [0, 1].map(|shard| out.shards[shard][time].update);
            count += updates.iter().filter(|u| **u != 0).count() as u8;
            let want = [updates[0], updates[1], count];
            if out.incidents[time] != want {
                return Err(format!("INCIDENT: {:x?} at {time}, alerts give {want:x?}", out.incidents[time]));
            }
        }
        Ok(())
    }

    fn check_mutex(&self, state: &State) -> Result<(), String> {
        let runs = state.runs.iter().enumerate().filter(|(_, run)| matches!(run.phase, Phase::Running));
        for (new, run) in runs.clone() {
            for (old, older) in runs.clone().filter(|(_, older)| older.generation < run.generation) {
                let alive = (0..older.workers as usize).find(|worker| self.owns(state, old, *worker));
                if let Some(worker) = alive {
                    return Err(format!("MUTEX: run {old} may commit as worker {worker} after run {new} has read"));
                }
            }
        }
        Ok(())
    }

    /// What must hold where nothing more can happen.
    pub fn check_end(&self, state: &State) -> Result<(), String> {
        let runs = || state.runs.iter().enumerate();
        let alive = |n: usize, run: &Run| {
            run.phase == Phase::Running && (0..run.workers as usize).all(|worker| self.owns(state, n, worker))
        };
        if runs().filter(|(n, run)| alive(*n, run)).count() > 1 {
            return Err("TWO ALIVE".to_owned());
        }
        if let Some((one, _)) = runs().find(|(n, run)| alive(*n, run)) {
            let all = self.scenario.last + 1;
            let out = &state.outputs;
            // A partition that appeared later is the next run's.
            let events = |p: usize| {
                !self.reads(state, one, p) || !self.records(p).iter().zip(out.events[p]).any(|(_, a)| a == NEVER)
            };
            let complete = (0..PARTS).all(events) && out.frontiers == [all; SHARDS] && out.tenant == all;
            return if complete { Ok(()) } else { Err("STUCK: one is alive, not everything is written".to_owned()) };
        }
        // Nobody lives. Who was fenced is started again, unless another owns the job; and so is a start that failed.
        let again = |run: &Run| match run.phase {
            Phase::No => false,
            _ if self.is(Broken::FencedStaysDown) => false,
            _ => run.generation == 0 || run.generation == state.generation,
        };
        if runs().any(|(_, run)| again(run)) {
            Ok(())
        } else {
            Err("NOBODY is alive, and nobody is restarted".to_owned())
        }
    }
}
