//! One Pod on trial: what it is tried for, what came of it, and what it is trusted with until then.

use super::Replica;
use crate::relay::ask::Content;
use crate::relay::awake::Time;
use crate::relay::cache::Unserved;
use crate::relay::origin::Origin;
use crate::relay::trial::Trial;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

impl Replica {
    /// What it is to be tried for next, and when.
    pub(in crate::relay) fn next_trial(&self) -> Option<(Instant, Arc<Trial>)> {
        self.record().conduct.next_trial()
    }

    /// It does well what it failed at.
    pub(in crate::relay) fn acquitted(&self, trial: &Arc<Trial>) {
        tracing::info!(registry = self.registry, pod = self.pod, "the cache does well what it was tried for");
        self.update(|record| {
            record.conduct.acquit(trial);
            record.forgive();
        });
    }

    /// It fails at it still, and at nothing else as far as is known.
    pub(in crate::relay) fn withheld(&self, trial: &Arc<Trial>, is_beyond: bool, how: &dyn Display) {
        let (registry, pod, content) = (&self.registry, &self.pod, &trial.content.target);
        tracing::warn!(registry, pod, content, error = %how, "the cache fails at this alone, pulls of it pass it by");
        self.update(|record| {
            record.conduct.withhold(trial, is_beyond, Instant::now());
            record.forgive();
        });
    }

    /// Whether it fails at this, and does other things well.
    pub(in crate::relay) fn withholds(&self, content: &Content) -> bool {
        !self.route.load().is_only_way && self.record().conduct.withholds(content)
    }

    /// What shows whether it fails at this alone.
    pub(in crate::relay) fn controls(&self, trial: &Trial) -> Vec<Trial> {
        self.record().conduct.controls(trial)
    }

    /// This was asked for in vain, though other content failed.
    pub(in crate::relay) fn wanted(&self, content: &Arc<Content>) {
        if self.record().conduct.want(content, Instant::now()) {
            self.accused.notify_one();
        }
    }

    /// It fails at it still, and at other content as well, or none tells.
    pub(in crate::relay) fn convicted(&self, trial: &Arc<Trial>, is_settled: bool, how: &dyn Display) {
        let offence = format!("{}: {how}", self.address);
        tracing::warn!(registry = self.registry, pod = self.pod, error = offence, "the cache still fails at the same");
        self.update(|record| {
            record.conduct.convict(trial, is_settled, Instant::now());
            if record.conduct.is_refused(Origin::Disk) {
                record.offence = Some(offence);
            }
        });
    }

    /// Another Pod sent something else than this: whether this one does is found out at once.
    pub(in crate::relay) fn suspected(&self, content: &Arc<Content>) {
        self.record().conduct.suspect(content, Instant::now());
        self.accused.notify_one();
    }

    /// Whether a large blob from there, of this length, may be passed on. Where that shows in a moment, it is waited for: in an outage
    /// there may be no other way.
    pub(in crate::relay) async fn is_trusted_with(
        &self,
        content: &Content,
        origin: Origin,
        length: u64,
        time: &mut Time,
        reserve: Duration,
    ) -> bool {
        if self.route.load().is_only_way {
            return true;
        }
        time.wait(reserve, self.until_unsuspected()).await;
        let record = self.record();
        !record.conduct.is_refused(origin) && !record.conduct.is_doubtful(content, origin, length, Instant::now())
    }

    async fn until_unsuspected(&self) {
        let mut verdicts = self.news.verdicts.subscribe();
        let until = || self.record().conduct.is_suspect_until(Instant::now());
        while let Some(until) = until() {
            // The sender is a part of this: this ends with a verdict, or in time.
            let _ = timeout_at(until, verdicts.changed()).await;
        }
    }

    /// It was suspected rightly.
    pub(in crate::relay) fn found_lying(&self, trial: &Arc<Trial>) {
        self.offended(&Unserved::OtherContent, Trial::right(&trial.content));
        self.record().conduct.acquit(trial);
    }
}
