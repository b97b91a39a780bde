//! How many tasks of a tenant wait for a worker, for policies that limit it.
//!
//! Nothing is kept of tenants without a limit. For the others there is one number each: asked for anew now and then, and kept up to date by what this
//! orchestrator accepts and hands to workers. What others of several orchestrators do shows with the next one, so together they may let a few seconds'
//! submissions too many through.
//!
//! The orchestrator that serves the tenant's queues has their lengths in memory, and is [asked](Waiting::ask). A queue holds tasks too that were cancelled in
//! it, until their turn comes: so whom its length lets in is let in, and nobody is refused by it. Who would be, and who hears nothing, counts from the log
//! ([`TaskLog::waiting`]). That asks the broker to go through all that the tenant has there, ended or not: 1.9 s with a million tasks, and for a part of it
//! nobody's task is stored. So nobody waits for one whom the number lets in: it is counted beside that ([`Number::is_fair`]). Only who would
//! be refused by an old number waits, and who comes first.
//!
//! Who is refused is told when a place will be free, by how fast the tenant's became free so far ([`Leaving`]): seen here, and of what others hand
//! over or end, by a count that finds fewer than were known. That costs a refusal no look at anything else.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use contract::{ErrorCode, Failure, TenantId};
use futures::future::BoxFuture;
use lifecycle::Tasks as ServiceTasks;
use task_log::{TaskLog, TaskLogError};
use tokio::sync::Mutex as Turn;

use crate::error::CallError;
use crate::leaving::Leaving;

/// How long a count is good.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// How long it is good for a refusal: what it would refuse may have left meanwhile.
const GOOD_FOR_REFUSAL: Duration = Duration::from_millis(500);
/// Counting takes at most one part in so many of the time.
const TIMES_ITS_COST: u32 = 20;
/// Tenants with a number. Beyond that those that were not counted lately lose theirs, and are counted anew.
const MAX_TENANTS: usize = 4096;

/// One tenant's number.
#[derive(Debug)]
struct Number {
    /// Waiting at the last count, and those accepted and handed over here since it began.
    waiting: i64,
    /// Accepted since the count that is under way began.
    since: i64,
    /// On their way into the log.
    coming: i64,
    counted: Option<Instant>,
    took: Duration,
    /// It was counted from the log: it may refuse.
    is_exact: bool,
    /// How fast they become fewer.
    leaving: Leaving,
    /// Held by whoever counts.
    turn: Arc<Turn<()>>,
}

impl Number {
    fn new() -> Self {
        Self {
            waiting: 0,
            since: 0,
            coming: 0,
            counted: None,
            took: Duration::ZERO,
            is_exact: false,
            leaving: Leaving::default(),
            turn: Arc::default(),
        }
    }

    /// A count that took so long is there.
    fn take_count(&mut self, waiting: u64, took: Duration, now: Instant) {
        let known = self.waiting;
        // Some of those may have been counted already: rather too many than too few, until the next time.
        self.waiting = i64::try_from(waiting).unwrap_or(i64::MAX / 2) + self.since;
        self.took = took;
        let gone = u32::try_from(known.saturating_sub(self.waiting)).unwrap_or(0);
        if gone > 0 && self.counted.is_some() {
            self.leaving.note(gone, now);
        }
        self.counted = Some(now);
        self.rest();
    }

    /// One was handed to a worker.
    fn left(&mut self, now: Instant) {
        self.waiting -= 1;
        self.leaving.note(1, now);
        self.rest();
    }

    /// Where none waits, no place is waited for.
    fn rest(&mut self) {
        if self.waiting <= 0 {
            self.leaving.ran_dry();
        }
    }

    /// How one is refused: with the time until there is a place.
    fn refusal(&self, limit: NonZeroU32, now: Instant) -> Failure {
        let over = self.there().saturating_sub(i64::from(limit.get())).max(0);
        let places = u32::try_from(over).unwrap_or(u32::MAX).saturating_add(1);
        too_many(limit, self.leaving.wait(places, now))
    }

    fn there(&self) -> i64 {
        self.waiting.max(0) + self.coming
    }

    fn is_good(&self, at_limit: bool, now: Instant) -> bool {
        let age = self.age(now).filter(|_| self.is_exact || !at_limit);
        age.is_some_and(|age| age < self.good_for(at_limit))
    }

    /// Good enough to let somebody in while it is counted anew.
    fn is_fair(&self, now: Instant) -> bool {
        self.age(now)
            .is_some_and(|age| age < 2 * self.good_for(false))
    }

    fn good_for(&self, at_limit: bool) -> Duration {
        let good_for = if at_limit { GOOD_FOR_REFUSAL } else { GOOD_FOR };
        good_for.max(self.took * TIMES_ITS_COST)
    }

    /// How long ago it was counted.
    fn age(&self, now: Instant) -> Option<Duration> {
        let counted = self.counted?;
        Some(now.saturating_duration_since(counted))
    }
}

/// The numbers of all tenants that have a limit.
pub(crate) struct Waiting {
    numbers: Numbers,
    jobs: ServiceTasks,
}

/// How many of a tenant's tasks wait, and perhaps some more, by who has them in memory; `None` where nobody tells.
type Known = Box<dyn Fn(TenantId) -> BoxFuture<'static, Option<u64>> + Send + Sync>;

/// Cheap to clone.
#[derive(Clone)]
struct Numbers {
    log: TaskLog,
    known: Arc<OnceLock<Known>>,
    tenants: Arc<Mutex<HashMap<TenantId, Number>>>,
}

/// A place among those that wait. Dropped without being [taken](Place::taken) it is free again.
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    tenant: TenantId,
    taken: bool,
}

impl Place<'_> {
    /// The task is stored.
    pub(crate) fn taken(mut self) {
        self.taken = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.waiting.numbers.tenants().get_mut(&self.tenant) {
            number.coming -= 1;
            if self.taken {
                number.waiting += 1;
                number.since += 1;
            }
        }
    }
}

impl Waiting {
    /// Counts beside calls are jobs of these.
    pub(crate) fn new(log: TaskLog, jobs: ServiceTasks) -> Self {
        let numbers = Numbers {
            log,
            known: Arc::default(),
            tenants: Arc::default(),
        };
        Self { numbers, jobs }
    }

    /// Asks `known` from now on before the log.
    pub(crate) fn ask(&self, known: Known) {
        // Once: whoever else would be asked knows the same.
        let _ = self.numbers.known.set(known);
    }

    /// Takes a place among the tenant's tasks that wait.
    ///
    /// # Errors
    /// [`ErrorCode::TooManyTasks`] when as many wait as may; and when they cannot be counted.
    pub(crate) async fn enter(
        &self,
        tenant: &TenantId,
        limit: NonZeroU32,
    ) -> Result<Place<'_>, CallError> {
        loop {
            let turn = {
                let mut tenants = self.numbers.tenants();
                make_room(&mut tenants, tenant);
                let number = tenants.entry(tenant.clone()).or_insert_with(Number::new);
                let full = number.there() >= i64::from(limit.get());
                let now = Instant::now();
                let good = number.is_good(full, now);
                if good && full {
                    return Err(number.refusal(limit, now).into());
                }
                if good || (!full && number.is_fair(now)) {
                    number.coming += 1;
                    if !good {
                        self.count_beside(tenant, limit, number.turn.clone());
                    }
                    return Ok(Place {
                        waiting: self,
                        tenant: tenant.clone(),
                        taken: false,
                    });
                }
                number.turn.clone()
            };
            // Whoever comes while someone counts waits for that instead.
            match turn.try_lock() {
                Ok(_turn) => self.numbers.count(tenant, limit).await?,
                Err(_) => drop(turn.lock().await),
            }
        }
    }

    /// How one is refused that would come now, as far as is known without counting.
    pub(crate) fn refusal(&self, tenant: &TenantId, limit: NonZeroU32) -> Option<Failure> {
        let tenants = self.numbers.tenants();
        let number = tenants.get(tenant)?;
        let full = number.there() >= i64::from(limit.get());
        let now = Instant::now();
        (full && number.is_good(true, now)).then(|| number.refusal(limit, now))
    }

    /// Counts anew, unless someone does, and lets nobody wait for it.
    fn count_beside(&self, tenant: &TenantId, limit: NonZeroU32, turn: Arc<Turn<()>>) {
        let Ok(turn) = turn.try_lock_owned() else {
            return;
        };
        let (numbers, tenant) = (self.numbers.clone(), tenant.clone());
        self.jobs.job("count", async move {
            if let Err(error) = numbers.count(&tenant, limit).await {
                let error = lifecycle::chain(&error);
                tracing::debug!(error, %tenant, "a tenant's waiting tasks are counted later");
            }
            drop(turn);
        });
    }

    /// A task of the tenant was handed to a worker.
    pub(crate) fn left(&self, tenant: &TenantId) {
        if let Some(number) = self.numbers.tenants().get_mut(tenant) {
            number.left(Instant::now());
        }
    }
}

impl Numbers {
    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Number>> {
        // After a panic it still holds whole numbers.
        self.tenants.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Counts anew. Whoever calls this has the number's turn.
    async fn count(&self, tenant: &TenantId, limit: NonZeroU32) -> Result<(), TaskLogError> {
        let began = Instant::now();
        if let Some(number) = self.tenants().get_mut(tenant) {
            number.since = 0;
        }
        let (waiting, is_exact) = match self.below(tenant, limit).await {
            Some(waiting) => (waiting, false),
            None => (self.log.waiting(tenant).await?, true),
        };
        if let Some(number) = self.tenants().get_mut(tenant) {
            number.take_count(waiting, began.elapsed(), Instant::now());
            number.is_exact = is_exact;
        }
        Ok(())
    }

    /// How many wait by who has them in memory, if another one is let in by that and what is on its way.
    async fn below(&self, tenant: &TenantId, limit: NonZeroU32) -> Option<u64> {
        let known = self.known.get()?;
        let waiting = known(tenant.clone()).await?;
        let tenants = self.tenants();
        let more = tenants.get(tenant).map_or(0, |one| one.coming + one.since);
        let all = waiting.saturating_add(u64::try_from(more).unwrap_or(0));
        (all < u64::from(limit.get())).then_some(waiting)
    }
}

/// Keeps the table bounded.
fn make_room(tenants: &mut HashMap<TenantId, Number>, wanted: &TenantId) {
    if tenants.len() < MAX_TENANTS || tenants.contains_key(wanted) {
        return;
    }
    let now = Instant::now();
    tenants.retain(|_, number| number.coming > 0 || number.is_good(false, now));
    if tenants.len() >= MAX_TENANTS {
        let spare = tenants.iter().find(|(_, number)| number.coming == 0);
        if let Some(spare) = spare.map(|(tenant, _)| tenant.clone()) {
            tenants.remove(&spare);
        }
    }
}

fn too_many(limit: NonZeroU32, wait: Duration) -> Failure {
    let text = format!(
        "{limit} of your tasks wait, as many as the policy of your key allows (tasks_waiting); try again when some have been \
         taken up"
    );
    Failure {
        retry_after: Some(wait),
        ..Failure::new(ErrorCode::TooManyTasks, text)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use lifecycle::Service;
    use messaging::{Broker, BrokerSettings};
    use nats_server::NatsServer;

    use super::*;

    #[tokio::test]
    async fn whom_an_old_number_lets_in_does_not_wait_for_the_count_and_whom_it_refuses_does() {
        let server = NatsServer::scratch().unwrap();
        let broker = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let log = TaskLog::new(Broker::connect(&broker, "test").await.unwrap());
        let settings: crate::Settings = settings::load(None, &[]).unwrap();
        log.ensure_streams(&settings.streams).await.unwrap();
        let service = Service::new("test");
        let waiting = Waiting::new(log, service.tasks.clone());
        let acme: TenantId = "acme".parse().unwrap();
        let limit = |limit| NonZeroU32::new(limit).unwrap();
        waiting.enter(&acme, limit(9)).await.unwrap().taken();
        // Counted a while ago, and somebody is at it for ever.
        let turn = {
            let mut tenants = waiting.numbers.tenants();
            let number = tenants.get_mut(&acme).unwrap();
            number.counted = Instant::now().checked_sub(GOOD_FOR);
            number.took = Duration::ZERO;
            number.turn.clone()
        };
        let _turn = turn.lock().await;
        let enter = async |most| {
            let entered = waiting.enter(&acme, limit(most));
            let entered = tokio::time::timeout(Duration::from_millis(500), entered).await;
            entered.map(|entered| entered.map(drop).is_ok())
        };
        assert_eq!(enter(9).await, Ok(true));
        assert!(enter(1).await.is_err(), "it may have room by now");
        // Nor is it let in by what is too old.
        if let Some(number) = waiting.numbers.tenants().get_mut(&acme) {
            number.counted = Instant::now().checked_sub(2 * GOOD_FOR);
        }
        assert!(enter(9).await.is_err());
    }

    #[tokio::test]
    async fn whom_the_queues_length_lets_in_costs_no_count_and_nobody_is_refused_by_it() {
        let server = NatsServer::scratch().unwrap();
        let broker = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&broker, "test").await.unwrap();
        let log = TaskLog::new(broker.clone());
        let service = Service::new("test");
        let waiting = Waiting::new(log.clone(), service.tasks.clone());
        let known = Arc::new(Mutex::new(Some(3)));
        let told = known.clone();
        waiting.ask(Box::new(move |_| {
            let told = *told.lock().unwrap();
            async move { told }.boxed()
        }));
        let tell = |number| *known.lock().unwrap() = number;
        let acme: TenantId = "acme".parse().unwrap();
        let limit = |limit| NonZeroU32::new(limit).unwrap();
        // There is no log so far: whoever counted would hear that.
        waiting.enter(&acme, limit(4)).await.unwrap().taken();
        tell(Some(4));
        assert!(waiting.enter(&acme, limit(4)).await.is_err(), "it counts");
        let settings: crate::Settings = settings::load(None, &[]).unwrap();
        log.ensure_streams(&settings.streams).await.unwrap();
        // By the log none waits: the others have been cancelled where they waited.
        let place = waiting.enter(&acme, limit(4)).await.unwrap();
        let anew = || {
            if let Some(number) = waiting.numbers.tenants().get_mut(&acme) {
                number.counted = None;
            }
        };
        for (told, most) in [(Some(4), 5), (Some(100), 5), (None, 5)] {
            tell(told);
            anew();
            let entered = waiting.enter(&acme, limit(most)).await;
            assert!(entered.is_ok(), "{told:?}");
        }
        // One is on its way, and the log has none.
        tell(Some(100));
        anew();
        assert!(waiting.enter(&acme, limit(1)).await.is_err());
        drop(place);
    }

    #[test]
    fn who_is_refused_is_told_when_a_place_will_be_free_by_how_fast_they_became_free() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let limit = NonZeroU32::new(3).unwrap();
        let mut number = Number::new();
        let told = |number: &Number, seconds| number.refusal(limit, at(seconds)).retry_after;
        number.take_count(40, Duration::ZERO, start);
        assert_eq!(told(&number, 0), Some(Duration::from_secs(2)));
        // A count that finds fewer is as good as what was handed over here.
        for left in 1..=36 {
            number.left(at(10 * left));
        }
        number.take_count(3, Duration::ZERO, at(370));
        assert_eq!(told(&number, 370), Some(Duration::from_secs(10)));
        // A lower limit: three must leave before one may come.
        number.take_count(5, Duration::ZERO, at(370));
        assert_eq!(told(&number, 370), Some(Duration::from_secs(30)));
        // What came after none waited is not measured by what was before.
        number.take_count(0, Duration::ZERO, at(370));
        number.take_count(3, Duration::ZERO, at(371));
        assert_eq!(told(&number, 371), Some(Duration::from_secs(2)));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_nobody_whose_task_is_on_its_way() {
        let mut tenants: HashMap<TenantId, Number> = HashMap::new();
        let busy: TenantId = "busy".parse().unwrap();
        let mut number = Number::new();
        number.coming = 1;
        tenants.insert(busy.clone(), number);
        for number in 0..2 * MAX_TENANTS {
            let tenant: TenantId = format!("t-{number}").parse().unwrap();
            make_room(&mut tenants, &tenant);
            let mut fresh = Number::new();
            fresh.counted = Some(Instant::now());
            tenants.insert(tenant, fresh);
            assert!(tenants.len() <= MAX_TENANTS);
        }
        assert!(tenants.contains_key(&busy));
    }

    #[test]
    fn a_count_that_was_dear_is_good_for_longer() {
        let now = Instant::now();
        let mut number = Number::new();
        assert!(!number.is_good(false, now));
        (number.counted, number.is_exact) = (Some(now), true);
        assert!(number.is_good(false, now + Duration::from_secs(4)));
        assert!(!number.is_good(true, now + Duration::from_secs(4)));
        number.took = Duration::from_secs(1);
        assert!(number.is_good(true, now + Duration::from_secs(19)));
    }
}
