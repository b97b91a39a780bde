//! When signing keys come and go. A key is published before it signs, so that whoever verifies with the published keys has
//! it by then; it stays until the last token that it can have signed has expired. What is due is decided by a pure
//! function; that several instances act on it does no harm, because a generation is made once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifecycle::Service;
use messaging::{BrokerError, Bucket, Snapshot};
use tokio::sync::watch;

use super::ring::{Generation, Ring, SigningKeyRecord};
use crate::authenticate::Clock;
use crate::key_encryption::KeyEncryption;
use crate::rewrap;
use crate::store::SIGNING_KEYS;

/// How long a key is published before it signs. Whoever keeps a copy of the published keys is told to read them anew
/// every five minutes.
pub(crate) const PUBLISHED_BEFORE: Duration = Duration::from_secs(3600);
/// How far the clocks of two instances may differ: one may sign with a key for so long after another has gone on.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// How often an instance looks whether something is due, and tries again what it could not open.
pub(crate) const LOOK: Duration = Duration::from_secs(20);

/// How long keys live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// How long a key signs.
    pub(crate) every: Duration,
    /// How long a token lives at most.
    pub(crate) lifetime: Duration,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Make this generation, to sign from then on.
    Make(Generation, Timestamp),
    /// Nothing that this one signed is good any more.
    Remove(Generation),
}

/// What is due at `now`, given from when on each generation signs.
fn due(held: &BTreeMap<Generation, Timestamp>, now: Timestamp, schedule: Schedule) -> Vec<Due> {
    let Some((&newest, &signs_from)) = held.last_key_value() else {
        // Nobody holds a token or a published key yet.
        return vec![Due::Make(1, now)];
    };
    let mut all = Vec::new();
    let ready = after(now, PUBLISHED_BEFORE);
    let next_from = after(signs_from, schedule.every);
    if next_from <= ready {
        // One that is overdue, because nobody ran to make it, is published for as long as any other.
        all.push(Due::Make(newest + 1, ready));
    }
    let good_for = schedule.lifetime + CLOCKS_APART;
    let next = held.iter().skip(1);
    for ((&generation, _), (_, &successor_from)) in held.iter().zip(next) {
        if after(successor_from, good_for) <= now {
            all.push(Due::Remove(generation));
        }
    }
    all
}

/// Later by `time`; the end of time where there is no such moment.
fn after(at: Timestamp, time: Duration) -> Timestamp {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}

fn name(generation: Generation) -> String {
    format!("{generation:010}")
}

/// Everything that keeping the keys needs.
struct Keeper {
    bucket: Bucket<SigningKeyRecord>,
    key_encryption: Arc<dyn KeyEncryption>,
    schedule: Schedule,
    /// This instance's own.
    clock: Clock,
}

/// Keeps the signing keys for as long as the service runs. When this returns there is one that signs, if the broker and
/// the key-encryption key let there be.
pub(crate) async fn start(
    service: &Service,
    bucket: Bucket<SigningKeyRecord>,
    key_encryption: Arc<dyn KeyEncryption>,
    schedule: Schedule,
    clock: Clock,
) -> Result<watch::Receiver<Arc<Ring>>, BrokerError> {
    let keeper = Keeper {
        bucket,
        key_encryption,
        schedule,
        clock,
    };
    keeper.look(&keeper.bucket.all().await?).await?;
    let mut copy = keeper
        .bucket
        .follow(&service.tasks, "follow signing keys")
        .await?;
    rewrap::start(
        service,
        (keeper.bucket.clone(), SIGNING_KEYS),
        copy.clone(),
        keeper.key_encryption.clone(),
    );
    let first = copy.borrow_and_update().clone();
    let (opened, whole) = open(&*keeper.key_encryption, &first, &Ring::default()).await;
    let (ring, shown) = watch::channel(Arc::new(opened));
    let stopping = service.tasks.stopping();
    service.tasks.critical("signing keys", async move {
        tokio::select! {
            () = stopping => {}
            () = keeper.keep(copy, ring, whole) => {}
        }
        Ok::<(), BrokerError>(())
    });
    Ok(shown)
}

impl Keeper {
    async fn keep(
        &self,
        mut copy: watch::Receiver<Snapshot<SigningKeyRecord>>,
        ring: watch::Sender<Arc<Ring>>,
        mut whole: bool,
    ) {
        let mut seen = copy.borrow().clone();
        loop {
            let changed = tokio::time::timeout(LOOK, copy.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                // Nobody follows the bucket any more: the service stops.
                return;
            }
            let held = copy.borrow_and_update().clone();
            // Keys that could not be opened are tried again at each look: what opens them may have been away.
            if held != seen || !whole {
                let before = ring.borrow().clone();
                let opened;
                (opened, whole) = open(&*self.key_encryption, &held, &before).await;
                ring.send_replace(Arc::new(opened));
                seen = held.clone();
            }
            if let Err(error) = self.look(&held).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "signing keys are not kept just now"
                );
            }
        }
    }

    /// Does what is due, by the broker's clock: a key that an instance whose own is ahead removed too early would be gone for all.
    async fn look(&self, held: &BTreeMap<String, SigningKeyRecord>) -> Result<(), BrokerError> {
        let named = |(name, record): (&String, &SigningKeyRecord)| {
            Some((name.parse().ok()?, record.signs_from))
        };
        let held: BTreeMap<_, _> = held.iter().filter_map(named).collect();
        let own = (self.clock)();
        let now = Timestamp::try_from(self.bucket.time().await?).unwrap_or(own);
        for due in due(&held, now, self.schedule) {
            match due {
                // Else none signs here until a clock that is behind has come that far.
                Due::Make(generation, signs_from) if held.is_empty() => {
                    self.make(generation, signs_from.min(own)).await?;
                }
                Due::Make(generation, signs_from) => self.make(generation, signs_from).await?,
                Due::Remove(generation) => {
                    self.bucket.delete(&name(generation)).await?;
                    tracing::info!(
                        generation,
                        "a signing key was removed; its tokens have expired"
                    );
                }
            }
        }
        Ok(())
    }

    async fn make(&self, generation: Generation, signs_from: Timestamp) -> Result<(), BrokerError> {
        let made = SigningKeyRecord::random(&*self.key_encryption, generation, signs_from).await;
        let record = match made {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a signing key cannot be sealed"
                );
                return Ok(());
            }
        };
        match self.bucket.create(&name(generation), &record).await {
            Ok(_) => {
                tracing::info!(generation, %signs_from, "a signing key was made");
                Ok(())
            }
            // Another instance was first.
            Err(BrokerError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The keys that are held, and whether all of them could be opened. One that cannot be does not hide the others: where it was opened before it
/// stays, and else it is said which it is.
async fn open(
    key_encryption: &dyn KeyEncryption,
    held: &BTreeMap<String, SigningKeyRecord>,
    before: &Ring,
) -> (Ring, bool) {
    let mut ring = Ring::default();
    let mut whole = true;
    for (name, record) in held {
        let Ok(generation) = name.parse() else {
            tracing::error!(name, "no generation is named like this signing key");
            continue;
        };
        match record.open(key_encryption, generation).await {
            Ok(key) => drop(ring.keys.insert(generation, Arc::new(key))),
            Err(error) => {
                whole = false;
                match before.keys.get(&generation) {
                    Some(key) => drop(ring.keys.insert(generation, Arc::clone(key))),
                    None => ring.unopened.push(generation),
                }
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, generation, "a signing key cannot be opened");
            }
        }
    }
    (ring, whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key_encryption::LocalKey;
    use crate::sealed::Key;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_key_that_cannot_be_opened_is_told_by_its_generation_unless_it_was_opened_before() {
        let (here, elsewhere) = (
            LocalKey::new(&Key::random().unwrap()),
            LocalKey::new(&Key::random().unwrap()),
        );
        let one = SigningKeyRecord::random(&here, 1, at(0)).await.unwrap();
        let two = SigningKeyRecord::random(&elsewhere, 2, at(1)).await;
        let held = BTreeMap::from([(name(1), one), (name(2), two.unwrap())]);
        let told = |ring: &Ring| {
            let generations: Vec<_> = ring.public().iter().map(|(number, _)| *number).collect();
            (generations, ring.unopened.clone())
        };
        let (ring, whole) = open(&here, &held, &Ring::default()).await;
        assert_eq!((told(&ring), whole), ((vec![1], vec![2]), false));
        // What opened it is away: it is tried again, and verifies meanwhile.
        let (ring, whole) = open(&elsewhere, &held, &ring).await;
        assert_eq!((told(&ring), whole), ((vec![1, 2], vec![]), false));
        // Removed is removed, opened or not.
        let (ring, whole) = open(&here, &BTreeMap::new(), &ring).await;
        assert_eq!((told(&ring), whole), ((vec![], vec![]), true));
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_first_key_signs_at_once_and_the_next_is_published_before_it_signs() {
        let schedule = Schedule {
            every: 24 * HOUR,
            lifetime: HOUR,
        };
        assert_eq!(
            due(&BTreeMap::new(), at(0), schedule),
            [Due::Make(1, at(0))]
        );
        let held = BTreeMap::from([(1, at(0))]);
        assert_eq!(due(&held, at(23 * 3600 - 1), schedule), []);
        assert_eq!(
            due(&held, at(23 * 3600), schedule),
            [Due::Make(2, at(24 * 3600))]
        );
        let overdue = due(&held, at(100 * 3600), schedule);
        assert_eq!(overdue, [Due::Make(2, at(101 * 3600))]);
    }

    proptest! {
        // Instances look at odd times, with pauses of days in between, and do what is due.
        #[test]
        fn a_key_is_published_before_it_signs_and_held_until_its_tokens_are_gone(
            pauses in prop::collection::vec(prop_oneof![1..60u64, 1..7200u64, 1..1_000_000u64], 1..200),
            more in 0..100u32,
            lifetime in 60..86_400u64,
        ) {
            let lifetime = Duration::from_secs(lifetime);
            // As the settings ask for.
            let schedule = Schedule { every: 2 * PUBLISHED_BEFORE + lifetime + HOUR * more, lifetime };
            let (mut held, mut published) = (BTreeMap::new(), BTreeMap::new());
            // When each generation has signed last.
            let mut signed: BTreeMap<Generation, Timestamp> = BTreeMap::new();
            let mut now = at(0);
            for pause in pauses {
                for due in due(&held, now, schedule) {
                    match due {
                        Due::Make(generation, from) => {
                            prop_assert!(held.insert(generation, from).is_none());
                            prop_assert!(published.insert(generation, now).is_none());
                            prop_assert!(generation == 1 || after(now, PUBLISHED_BEFORE) <= from);
                        }
                        Due::Remove(generation) => {
                            held.remove(&generation);
                            let last = signed.get(&generation);
                            prop_assert!(last.is_none_or(|last| after(*last, schedule.lifetime) <= now));
                        }
                    }
                }
                prop_assert!(held.len() <= 3);
                let signer = held.iter().rev().find(|(_, from)| **from <= now);
                let (generation, _) = signer.expect("one always signs");
                signed.insert(*generation, now);
                now = after(now, Duration::from_secs(pause));
                // Until it looks again, the instance signs with what it has.
                let signer = held.iter().rev().find(|(_, from)| **from <= now);
                signed.insert(*signer.unwrap().0, now);
            }
        }
    }
}
