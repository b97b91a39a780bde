//! Instances lease slices of each key's rate, so that all of them together let one key's rate through.
//!
//! Each instance keeps one record in the bucket `QUOTA`: the keys that are used there, and how many requests a second come for
//! each. All follow the bucket, and each [divides](crate::share) every key's rate by the same figures. A record lasts for
//! [`LEASE`] after it was last written; an instance that stops removes its own.
//!
//! * A key that nobody else has is leased whole. One without a lease yet gets an even part at once, so nobody waits for a round.
//! * Whether another instance is silent is measured by our own record, which comes back the same way: an instance that hears
//!   nothing at all takes nobody's slice, and when its own lease is over it keeps to an even part.
//! * Time is this process's own; the broker's is used for nothing but to clear the bucket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use contract::AppKey;
use lifecycle::Service;
use messaging::{Broker, BrokerError, Bucket, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::error::StartError;
use crate::limiter::{Limiter, Terms, Wanted};
use crate::metrics;
use crate::share::{self, Share};

/// The bucket of leases, by instance.
const QUOTA: &str = "QUOTA";
/// How long an instance's slices are its own after it was last heard.
const LEASE: Duration = Duration::from_secs(3);
/// How often demand is looked at. What has changed is told then.
const LOOK: Duration = Duration::from_millis(500);
/// Looks after which a record is written again though nothing has changed.
const RENEW_LOOKS: u32 = 2;
/// Bytes of an instance's name: no two ever have the same, or they would take each other's slices for their own.
const NAME_BYTES: usize = 16;

/// What an instance says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LeaseRecord {
    /// Grows with each write.
    beat: u64,
    /// Requests a second, by key.
    demands: BTreeMap<AppKey, u32>,
}

/// When each instance was last heard, in nanoseconds of our own clock. Pure.
#[derive(Debug)]
struct Hearing {
    own: String,
    heard: BTreeMap<String, Heard>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    beat: u64,
    at: u64,
}

const LEASE_NANOS: u64 = LEASE.as_nanos() as u64;

impl Hearing {
    fn new(own: String) -> Self {
        let heard = BTreeMap::new();
        Self { own, heard }
    }

    /// Takes in all records as they are seen now.
    fn hear(&mut self, records: &BTreeMap<String, LeaseRecord>, now: u64) {
        let deaf = self.own_until().is_none_or(|until| until < now);
        self.heard.retain(|name, _| records.contains_key(name));
        let mut own_is_new = false;
        for (name, record) in records {
            let beat = record.beat;
            let known = self.heard.get(name).map(|heard| heard.beat);
            if known != Some(beat) {
                let at = now;
                self.heard.insert(name.clone(), Heard { beat, at });
                own_is_new |= *name == self.own;
            }
        }
        // After a time in which nobody was heard, ourselves included, all others have as long as they would have had.
        if deaf && own_is_new {
            for heard in self.heard.values_mut() {
                heard.at = now;
            }
        }
    }

    /// Until when our own lease lasts; `None` before it was ever heard.
    fn own_until(&self) -> Option<u64> {
        let own = self.heard.get(&self.own)?;
        Some(own.at.saturating_add(LEASE_NANOS))
    }

    /// The others that are alive: those not silent for longer than a lease before we last heard ourselves.
    fn others(&self) -> impl Iterator<Item = &str> {
        let own = self.heard.get(&self.own).map_or(0, |own| own.at);
        let alive = move |heard: &Heard| heard.at.saturating_add(LEASE_NANOS) >= own;
        let others = self.heard.iter().filter(|(name, _)| **name != self.own);
        others
            .filter(move |(_, heard)| alive(heard))
            .map(|(name, _)| name.as_str())
    }

    fn terms(&self) -> Terms {
        Terms {
            until: self.own_until().unwrap_or(0),
            instances: self.others().count() + 1,
        }
    }

    /// Our share of every key that we want and that all have been told we want.
    fn shares(
        &self,
        records: &BTreeMap<String, LeaseRecord>,
        wanted: &BTreeMap<AppKey, Wanted>,
    ) -> BTreeMap<AppKey, Share> {
        let Some(told) = records.get(&self.own) else {
            return BTreeMap::new();
        };
        let others = self.others().filter_map(|name| records.get(name));
        let others: Vec<&LeaseRecord> = others.collect();
        let share = |(key, &own): (&AppKey, &u32)| {
            let per_second = wanted.get(key)?.rate.per_second.get();
            let demands = others.iter().filter_map(|other| other.demands.get(key));
            let demands: Vec<u32> = demands.copied().collect();
            Some((key.clone(), share::beside(per_second, own, &demands)))
        };
        told.demands.iter().filter_map(share).collect()
    }
}

/// Holds this instance's leases for as long as the service runs.
///
/// # Errors
/// When it cannot have a name of its own, or the bucket cannot be opened.
pub(crate) async fn start(
    service: &Service,
    broker: &Broker,
    limiter: Arc<Limiter>,
) -> Result<(), StartError> {
    let failed = |operation| move |source| StartError::Broker { operation, source };
    let mut name = [0; NAME_BYTES];
    rand::fill(&mut name).map_err(|_| StartError::NoName)?;
    let open = || broker.bucket::<LeaseRecord>(QUOTA, LEASE);
    let bucket = broker.patiently(open).await;
    let bucket = bucket.map_err(failed("open the bucket of leases"))?;
    let copy = bucket.follow(&service.tasks, "follow leases").await;
    let mut leases = Leases {
        hearing: Hearing::new(hex::encode(name)),
        bucket,
        copy: copy.map_err(failed("read the leases"))?,
        limiter,
        wanted: BTreeMap::new(),
        told: None,
    };
    // Before the first request, so that the others leave room for it.
    leases.tell(true).await;
    leases.divide();
    let stopping = service.tasks.stopping();
    service.tasks.critical("leases", async move {
        tokio::select! {
            () = stopping => {}
            () = leases.hold() => {}
        }
        leases.give_back().await;
        Ok::<(), Infallible>(())
    });
    Ok(())
}

struct Leases {
    hearing: Hearing,
    bucket: Bucket<LeaseRecord>,
    copy: watch::Receiver<Snapshot<LeaseRecord>>,
    limiter: Arc<Limiter>,
    wanted: BTreeMap<AppKey, Wanted>,
    told: Option<LeaseRecord>,
}

impl Leases {
    async fn hold(&mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looked, mut looks) = (self.limiter.now(), 0);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let now = self.limiter.now();
                    let over = Duration::from_nanos(now.saturating_sub(looked));
                    // The first tick is at once: nothing can be told from no time.
                    if over >= LOOK / 2 {
                        self.wanted = self.limiter.look(over);
                        looked = now;
                    }
                    looks += 1;
                    self.tell(looks % RENEW_LOOKS == 0).await;
                }
                changed = self.copy.changed() => {
                    // Who follows the bucket ends when the service stops, and so do we.
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                }
            }
            self.divide();
        }
    }

    /// Writes our record, if there is something new in it or it is time to.
    async fn tell(&mut self, renew: bool) {
        let demand = |(key, wanted): (&AppKey, &Wanted)| (key.clone(), wanted.demand);
        let demands: BTreeMap<AppKey, u32> = self.wanted.iter().map(demand).collect();
        let told = self.told.as_ref();
        if !renew && told.is_some_and(|told| told.demands == demands) {
            return;
        }
        let beat = told.map_or(1, |told| told.beat + 1);
        let record = LeaseRecord { beat, demands };
        if let Err(error) = self.bucket.put(&self.hearing.own, &record).await {
            // The lease runs out by itself, and the broker's check says what is wrong.
            tracing::debug!(%error, "the leases are not renewed");
        }
        // Whether or not it arrived: a beat is used once.
        self.told = Some(record);
    }

    /// Divides anew by what is known now.
    fn divide(&mut self) {
        let records = self.copy.borrow_and_update().clone();
        let now = self.limiter.now();
        self.hearing.hear(&records, now);
        let terms = self.hearing.terms();
        let shares = self.hearing.shares(&records, &self.wanted);
        metrics::leases(terms.instances, shares.len());
        self.limiter.lease(&shares, terms, now);
    }

    async fn give_back(&self) {
        let removed: Result<(), BrokerError> = self.bucket.delete(&self.hearing.own).await;
        if let Err(error) = removed {
            tracing::debug!(%error, "the leases run out by themselves");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::limit::Rate;

    const SECOND: u64 = 1_000_000_000;

    fn record(beat: u64, demand: u32) -> LeaseRecord {
        let demands = [("prod-a".parse().unwrap(), demand)].into();
        LeaseRecord { beat, demands }
    }

    fn records(all: &[(&str, u64, u32)]) -> BTreeMap<String, LeaseRecord> {
        let one =
            |&(name, beat, demand): &(&str, u64, u32)| (name.to_owned(), record(beat, demand));
        all.iter().map(one).collect()
    }

    fn wanted() -> BTreeMap<AppKey, Wanted> {
        let fifty = NonZeroU32::new(50).unwrap();
        let rate = Rate {
            per_second: fifty,
            burst: fifty,
        };
        let wanted = Wanted { demand: 50, rate };
        [("prod-a".parse().unwrap(), wanted)].into()
    }

    fn millionths(hearing: &Hearing, records: &BTreeMap<String, LeaseRecord>) -> u64 {
        let shares = hearing.shares(records, &wanted());
        shares[&"prod-a".parse().unwrap()].millionths()
    }

    #[test]
    fn what_nobody_was_told_we_want_is_not_ours_yet() {
        let mut hearing = Hearing::new("me".to_owned());
        let records = records(&[("you", 1, 50)]);
        hearing.hear(&records, 0);
        assert!(hearing.shares(&records, &wanted()).is_empty());
        let terms = hearing.terms();
        assert_eq!((terms.until, terms.instances), (0, 2));
    }

    #[test]
    fn a_silent_instance_loses_its_slice_after_its_lease_and_not_before() {
        let mut hearing = Hearing::new("me".to_owned());
        for beat in 0..=3 {
            let records = records(&[("me", beat, 50), ("you", 7, 50)]);
            hearing.hear(&records, beat * SECOND);
            assert_eq!(millionths(&hearing, &records), 500_000);
        }
        let records = records(&[("me", 4, 50), ("you", 7, 50)]);
        hearing.hear(&records, 4 * SECOND);
        assert_eq!(millionths(&hearing, &records), 1_000_000);
        assert_eq!(hearing.terms().instances, 1);
    }

    #[test]
    fn an_instance_that_gave_its_slice_back_is_gone_at_once() {
        let mut hearing = Hearing::new("me".to_owned());
        hearing.hear(&records(&[("me", 1, 50), ("you", 7, 50)]), 0);
        let records = records(&[("me", 1, 50)]);
        hearing.hear(&records, 1);
        assert_eq!(millionths(&hearing, &records), 1_000_000);
    }

    #[test]
    fn who_hears_nothing_takes_nobodys_slice_then_or_when_it_hears_again() {
        let mut hearing = Hearing::new("me".to_owned());
        let before = records(&[("me", 1, 50), ("you", 7, 50)]);
        hearing.hear(&before, 0);
        // The broker is away: nothing changes.
        hearing.hear(&before, 20 * SECOND);
        assert_eq!(millionths(&hearing, &before), 500_000);
        let terms = hearing.terms();
        assert_eq!((terms.until, terms.instances), (3 * SECOND, 2));
        // It is back, and our own record is the first that comes.
        let own = records(&[("me", 2, 50), ("you", 7, 50)]);
        hearing.hear(&own, 21 * SECOND);
        assert_eq!(millionths(&hearing, &own), 500_000);
        let own = records(&[("me", 3, 50), ("you", 7, 50)]);
        hearing.hear(&own, 23 * SECOND);
        assert_eq!(millionths(&hearing, &own), 500_000);
        let own = records(&[("me", 4, 50), ("you", 7, 50)]);
        hearing.hear(&own, 25 * SECOND);
        assert_eq!(millionths(&hearing, &own), 1_000_000);
    }

    proptest! {
        #[test]
        fn instances_that_see_the_same_give_out_no_more_than_the_whole(
            demands in prop::collection::vec(1..200u32, 1..8),
        ) {
            let names: Vec<String> = (0..demands.len()).map(|n| format!("i{n}")).collect();
            let all: Vec<_> = names.iter().zip(&demands).map(|(n, &d)| (n.as_str(), 1, d)).collect();
            let records = records(&all);
            let sum: u64 = names.iter().map(|name| {
                let mut hearing = Hearing::new(name.clone());
                hearing.hear(&records, 5);
                millionths(&hearing, &records)
            }).sum();
            prop_assert!(sum <= 1_000_000 && sum + 20 >= 1_000_000, "{}", sum);
        }
    }
}
