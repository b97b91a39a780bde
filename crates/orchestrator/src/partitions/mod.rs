//! Which tenants' queues this orchestrator dispatches from.
//!
//! All tenants are divided into partitions; each partition is owned by at most one orchestrator, by a record in LEASES that is written by
//! compare-and-set. An orchestrator shows that it lives by writing its record in MEMBERS again twice a second. Who has not been seen to do
//! so for [`DEAD_AFTER`], by the clock of whoever looks, is dead, and its partitions are free. Clocks of different machines
//! are never compared; how old a record was when it was first seen is told by the broker's clock alone.
//!
//! An orchestrator that was held up (a stopped process, a broken connection) may not know yet that it counts as dead: it dispatches
//! nothing once its own last renewal is older than [`SURE_FOR`]. Should it still, the broker keeps a task from being dispatched twice at
//! once (`task_log`).

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use contract::TenantId;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use lifecycle::{Check, Service};
use messaging::{Broker, BrokerError, Bucket};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::schedule::Version;
pub(crate) use plan::{Partition, partition_of, share};

/// Between two renewals.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// Silence after which a member is dead. Its last record is seen up to [`RENEW_EVERY`] after it was written, and that it is the last shows at a
/// renewal: whoever is killed is taken over 3.5 s later at most, so that what waits goes on within five with a busy machine's delays.
const DEAD_AFTER: Duration = Duration::from_millis(2500);
/// How long a renewal lets its writer dispatch: less than [`DEAD_AFTER`] by more than a dispatch on its way takes.
pub(crate) const SURE_FOR: Duration = Duration::from_millis(1500);
/// How long the dispatcher may take to let a partition go.
const LET_GO: Duration = Duration::from_millis(500);
/// Records of members that are gone vanish.
const MEMBER_AGE: Duration = Duration::from_secs(60);

/// A record of LEASES; its key is the partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    /// Empty when it was released.
    owner: String,
}

/// A record of MEMBERS; its key is the member's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    /// Queues with tasks of each version, weighted by their lanes; versions as `<model>.<version>`.
    demand: BTreeMap<String, u64>,
}

/// What this orchestrator may dispatch; by default nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mandate {
    pub(crate) partitions: Arc<BTreeSet<Partition>>,
    /// When the last renewal that succeeded was begun.
    pub(crate) renewed: Option<Instant>,
    /// What each of the others wants of each version.
    pub(crate) others: Arc<BTreeMap<Version, Vec<u64>>>,
    /// The broker's time at a moment of ours.
    pub(crate) clock: Option<(SystemTime, Instant)>,
}

impl Mandate {
    /// Whether it may be acted on now.
    pub(crate) fn is_sure(&self, now: Instant) -> bool {
        self.renewed
            .is_some_and(|at| now.saturating_duration_since(at) < SURE_FOR)
    }

    /// The time by the broker's clock, or somewhat before; `None` where that is not known.
    pub(crate) fn time(&self, now: Instant) -> Option<SystemTime> {
        let (time, noted) = self.clock?;
        Some(time + now.saturating_duration_since(noted))
    }

    /// How long ago something was, by the broker's clock; never too long, for a clock that is not known says no time at all.
    pub(crate) fn age(&self, at: SystemTime, now: Instant) -> Duration {
        let Some((time, noted)) = self.clock else {
            return Duration::ZERO;
        };
        let since = now.saturating_duration_since(noted);
        time.duration_since(at)
            .map_or(Duration::ZERO, |age| age + since)
    }
}

/// When a member is taken to have been seen that is seen for the first time: whoever starts after another has died need not wait as though
/// that one had just written. Both times are the broker's.
fn first_seen(written: SystemTime, own: Option<SystemTime>, now: Instant) -> Instant {
    let age = own.and_then(|own| own.duration_since(written).ok());
    let age = age.unwrap_or_default().min(DEAD_AFTER);
    now.checked_sub(age).unwrap_or(now)
}

/// What the dispatcher tells in return.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    /// The partitions from which it dispatches.
    pub(crate) partitions: BTreeSet<Partition>,
    /// What it wants of each version.
    pub(crate) demand: BTreeMap<Version, u64>,
}

/// The dispatcher's ends.
pub(crate) struct Ends {
    pub(crate) mandate: watch::Receiver<Mandate>,
    pub(crate) served: watch::Sender<Served>,
}

/// The number of partitions, and who asks. Cheap to clone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partitions(pub(crate) Partition);

impl Partitions {
    pub(crate) fn of(self, tenant: &TenantId) -> Partition {
        partition_of(tenant, self.0)
    }
}

struct Membership {
    me: String,
    partitions: Partition,
    members: Bucket<Member>,
    leases: Bucket<Lease>,
    /// Each member's last write, and when it was first seen here.
    seen: HashMap<String, (u64, Instant)>,
    demands: BTreeMap<String, Member>,
    /// The broker's time at a moment of ours.
    clock: Option<(SystemTime, Instant)>,
    /// Partitions that are being given away: not ours any more, whatever their leases say meanwhile.
    giving: BTreeSet<Partition>,
    mandate: watch::Sender<Mandate>,
    served: watch::Receiver<Served>,
}

/// Partitions on their way to whoever takes them, and the revision of each one's lease.
struct Release {
    leases: Bucket<Lease>,
    served: watch::Receiver<Served>,
    revisions: BTreeMap<Partition, Option<u64>>,
}

/// Joins those who share the partitions. `name` must be nobody else's.
///
/// # Errors
/// When the buckets cannot be opened.
pub(crate) async fn start(
    service: &Service,
    broker: &Broker,
    partitions: Partitions,
    name: String,
) -> Result<Ends, BrokerError> {
    let (mandate, mandates) = watch::channel(Mandate::default());
    let (serving, served) = watch::channel(Served::default());
    let opened = Membership::open(broker, name, partitions.0, mandate, served);
    let mut membership = opened.await?;
    let stopping = service.tasks.stopping();
    let check = service.health.check("partitions");
    service.tasks.critical("partitions", async move {
        tokio::select! {
            () = stopping => {}
            () = membership.run(&check) => {}
        }
        membership.leave().await;
        Ok::<(), BrokerError>(())
    });
    Ok(Ends {
        mandate: mandates,
        served: serving,
    })
}

impl Membership {
    async fn open(
        broker: &Broker,
        me: String,
        partitions: Partition,
        mandate: watch::Sender<Mandate>,
        served: watch::Receiver<Served>,
    ) -> Result<Self, BrokerError> {
        Ok(Self {
            me,
            partitions,
            members: broker.bucket("MEMBERS", MEMBER_AGE).await?,
            leases: broker.bucket("LEASES", Duration::ZERO).await?,
            seen: HashMap::new(),
            demands: BTreeMap::new(),
            clock: None,
            giving: BTreeSet::new(),
            mandate,
            served,
        })
    }

    /// Renews again and again. What is given away goes beside that: however long it takes, no renewal waits for it. The check fails once nobody takes this one
    /// for alive any more: it dispatches nothing then, although the broker may answer whoever reads.
    async fn run(&mut self, check: &Check) {
        let mut renewed = Instant::now();
        let mut every = tokio::time::interval(RENEW_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut giving: BoxFuture<'static, Result<(), BrokerError>> =
            std::future::pending().boxed();
        loop {
            tokio::select! {
                biased;
                _ = every.tick() => match self.renew().await {
                    Ok(release) => {
                        renewed = Instant::now();
                        check.pass();
                        // One at a time: what else is to go is found again by the renewal after it.
                        if let Some(release) = release.filter(|_| self.giving.is_empty()) {
                            self.giving = release.revisions.keys().copied().collect();
                            giving = release.carry_out().boxed();
                        }
                    }
                    Err(error) => {
                        let error = lifecycle::chain(&error);
                        tracing::debug!(error, "partitions are not renewed");
                        if renewed.elapsed() >= DEAD_AFTER {
                            check.fail(format!("nothing is dispatched from here: {error}"));
                        }
                    }
                },
                given = &mut giving => {
                    giving = std::future::pending().boxed();
                    self.giving.clear();
                    if let Err(error) = given {
                        let error = lifecycle::chain(&error);
                        tracing::debug!(error, "partitions are given away later");
                    }
                }
            }
        }
    }

    /// Shows that this one lives, takes what is its to take, and says what it is to give away.
    async fn renew(&mut self) -> Result<Option<Release>, BrokerError> {
        let began = Instant::now();
        let member = self.member();
        self.members.put(&self.me, &member).await?;
        self.look().await?;
        // Read after the renewal: whoever was taken for dead finds its partitions taken.
        let leases = self.leases().await?;
        let now = Instant::now();
        let is_living = |(_, at): &(u64, Instant)| now.saturating_duration_since(*at) < DEAD_AFTER;
        let living = self.seen.iter().filter(|(_, seen)| is_living(seen));
        let mut living: Vec<String> = living.map(|(name, _)| name.clone()).collect();
        living.sort_unstable();
        let names: Vec<&str> = living.iter().map(String::as_str).collect();
        let owners = leases.iter().map(|(&p, (owner, _))| (p, owner.clone()));
        let owners: BTreeMap<Partition, String> = owners.collect();
        let plan = plan::plan(&self.me, &names, &owners, self.partitions);
        let mut mine: BTreeSet<Partition> = owners
            .iter()
            .filter(|(p, owner)| **owner == self.me && **p < self.partitions)
            .map(|(p, _)| *p)
            .collect();
        mine.retain(|p| !plan.release.contains(p) && !self.giving.contains(p));
        for partition in plan.take {
            // Its lease may change any moment, by what is on its way.
            if self.giving.contains(&partition) {
                continue;
            }
            let revision = leases.get(&partition).map(|(_, revision)| *revision);
            if write(&self.leases, partition, &self.me, revision).await? {
                mine.insert(partition);
            }
        }
        self.tell(mine, Some(began), &names);
        Ok(self.release(&plan.release, &leases))
    }

    fn member(&self) -> Member {
        let served = self.served.borrow();
        let of = |((model, version), n): (&Version, &u64)| (format!("{model}.{version}"), *n);
        Member {
            demand: served.demand.iter().map(of).collect(),
        }
    }

    /// Notes who has written since it was last looked.
    async fn look(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        let written = self.members.written_since(0).await?;
        let names: BTreeSet<&str> = written.iter().map(|one| one.key.as_str()).collect();
        self.seen.retain(|name, _| names.contains(name.as_str()));
        self.demands.clear();
        let own = written.iter().find(|one| one.key == self.me);
        let time = own.map(|one| one.at);
        self.clock = time.map(|at| (at, now)).or(self.clock);
        for one in &written {
            let Some(member) = &one.value else {
                self.seen.remove(&one.key);
                continue;
            };
            self.demands.insert(one.key.clone(), member.clone());
            let first = || (one.revision, first_seen(one.at, time, now));
            let seen = self.seen.entry(one.key.clone()).or_insert_with(first);
            if seen.0 != one.revision {
                *seen = (one.revision, now);
            }
        }
        Ok(())
    }

    /// Each lease's owner and revision.
    async fn leases(&self) -> Result<BTreeMap<Partition, (String, u64)>, BrokerError> {
        let written = self.leases.written_since(0).await?;
        let lease = |one: messaging::Written<Lease>| {
            let partition = one.key.parse().ok()?;
            let owner = one.value.map(|lease| lease.owner).unwrap_or_default();
            Some((partition, (owner, one.revision)))
        };
        Ok(written.into_iter().filter_map(lease).collect())
    }

    fn tell(&self, mine: BTreeSet<Partition>, renewed: Option<Instant>, living: &[&str]) {
        let mut others: BTreeMap<Version, Vec<u64>> = BTreeMap::new();
        for (name, member) in &self.demands {
            if *name == self.me || !living.contains(&name.as_str()) {
                continue;
            }
            for (version, demand) in &member.demand {
                if let Some((model, version)) = version.split_once('.') {
                    let version = (model.to_owned(), version.to_owned());
                    others.entry(version).or_default().push(*demand);
                }
            }
        }
        metrics::gauge!("inkstone_orchestrator_partitions").set(mine.len() as f64);
        self.mandate.send_replace(Mandate {
            partitions: Arc::new(mine),
            renewed,
            others: Arc::new(others),
            clock: self.clock,
        });
    }

    /// What gives these partitions away; `None` where there are none.
    fn release(
        &self,
        partitions: &[Partition],
        leases: &BTreeMap<Partition, (String, u64)>,
    ) -> Option<Release> {
        let revision = |partition| leases.get(partition).map(|(_, revision)| *revision);
        let revisions = partitions.iter().map(|p| (*p, revision(p)));
        let release = Release {
            leases: self.leases.clone(),
            served: self.served.clone(),
            revisions: revisions.collect(),
        };
        (!partitions.is_empty()).then_some(release)
    }

    /// Lets everything go at once, so that nobody waits for it.
    async fn leave(&mut self) {
        let leaving = async {
            self.tell(BTreeSet::new(), None, &[]);
            let leases = self.leases().await?;
            let mine = leases.iter().filter(|(_, (owner, _))| *owner == self.me);
            let mine: Vec<Partition> = mine.map(|(p, _)| *p).collect();
            if let Some(release) = self.release(&mine, &leases) {
                release.carry_out().await?;
            }
            self.members.delete(&self.me).await
        };
        if let Err(error) = leaving.await {
            let error: &dyn std::error::Error = &error;
            let error = lifecycle::chain(error);
            tracing::debug!(error, "partitions are taken over in some seconds");
        }
    }
}

impl Release {
    /// Gives the partitions to whoever takes them, once nothing is dispatched from them any more.
    async fn carry_out(mut self) -> Result<(), BrokerError> {
        let revisions = &self.revisions;
        let is_free = |served: &Served| revisions.keys().all(|p| !served.partitions.contains(p));
        let waited = tokio::time::timeout(LET_GO, self.served.wait_for(is_free)).await;
        // What it holds of the channel goes at once.
        if waited.map(|_| ()).is_err() {
            tracing::debug!("partitions are let go while a dispatch is on its way");
        }
        for (partition, revision) in &self.revisions {
            write(&self.leases, *partition, "", *revision).await?;
        }
        Ok(())
    }
}

/// True when the lease was written; false when someone else was first.
async fn write(
    leases: &Bucket<Lease>,
    partition: Partition,
    owner: &str,
    revision: Option<u64>,
) -> Result<bool, BrokerError> {
    let (key, owner) = (partition.to_string(), owner.to_owned());
    let lease = Lease { owner };
    let written = match revision {
        Some(revision) => leases.update(&key, &lease, revision).await,
        None => leases.create(&key, &lease).await,
    };
    match written {
        Ok(_) => Ok(true),
        Err(BrokerError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use messaging::BrokerSettings;
    use nats_server::NatsServer;

    use super::*;

    /// One that has no dispatcher.
    async fn member(broker: &Broker, name: &str, partitions: Partition) -> Membership {
        let (mandate, _) = watch::channel(Mandate::default());
        let (_, served) = watch::channel(Served::default());
        let opened = Membership::open(broker, name.to_owned(), partitions, mandate, served);
        opened.await.unwrap()
    }

    #[test]
    fn the_time_is_the_brokers() {
        let now = Instant::now();
        let mut mandate = Mandate::default();
        assert_eq!(mandate.time(now), None);
        mandate.clock = Some((SystemTime::UNIX_EPOCH, now));
        let later = Duration::from_secs(3);
        let time = SystemTime::UNIX_EPOCH + later;
        assert_eq!(mandate.time(now + later), Some(time));
    }

    #[tokio::test]
    async fn what_is_given_away_does_not_hold_up_the_next_renewal() {
        let server = NatsServer::scratch().unwrap();
        let settings = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&settings, "test").await.unwrap();
        let mut one = member(&broker, "one", 4).await;
        assert!(one.renew().await.unwrap().is_none());
        let of_one = async |one: &Membership| {
            let leases = one.leases().await.unwrap();
            leases.values().filter(|(owner, _)| owner == "one").count()
        };
        assert_eq!(of_one(&one).await, 4);
        one.members.put("two", &Member::default()).await.unwrap();
        let release = one.renew().await.unwrap().expect("half goes to the other");
        assert_eq!(of_one(&one).await, 4, "nothing was waited for");
        assert_eq!(one.mandate.borrow().partitions.len(), 2);
        // However long that takes: renewals go on, and take nothing of it back.
        one.giving = release.revisions.keys().copied().collect();
        one.members.delete("two").await.unwrap();
        let before = one.mandate.borrow().renewed;
        assert!(one.renew().await.unwrap().is_none());
        assert!(one.mandate.borrow().renewed > before);
        assert_eq!(one.mandate.borrow().partitions.len(), 2);
        release.carry_out().await.unwrap();
        assert_eq!(of_one(&one).await, 2);
        one.giving.clear();
        one.renew().await.unwrap();
        assert_eq!(one.mandate.borrow().partitions.len(), 4);
    }
}
