//! How many tasks of a tenant wait for a worker, for policies that limit it.
//!
//! Nothing is kept of tenants without a limit. For the others there is one number each: counted anew from the log now and then
//! ([`TaskLog::waiting`]), and kept up to date by what this orchestrator accepts and hands to workers. What others of several
//! orchestrators do shows with the next count, so together they may let a few seconds' submissions too many through.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::{ErrorCode, Failure, TenantId};
use task_log::{TaskLog, TaskLogError};
use tokio::sync::Mutex as Turn;

use crate::error::CallError;

/// How long a count is good.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// How long it is good for a refusal: what it would refuse may have left meanwhile.
const GOOD_FOR_REFUSAL: Duration = Duration::from_millis(500);
/// Counting takes at most one part in so many of the time.
const TIMES_ITS_COST: u32 = 20;
/// Tenants with a number. Beyond that those that were not counted lately lose theirs, and are counted anew.
const MAX_TENANTS: usize = 4096;
/// Nobody knows when a worker will be free; this is when to look again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

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
            turn: Arc::default(),
        }
    }

    fn there(&self) -> i64 {
        self.waiting.max(0) + self.coming
    }

    fn is_good(&self, at_limit: bool, now: Instant) -> bool {
        let good_for = if at_limit { GOOD_FOR_REFUSAL } else { GOOD_FOR };
        let good_for = good_for.max(self.took * TIMES_ITS_COST);
        let age = |counted| now.saturating_duration_since(counted);
        self.counted.is_some_and(|counted| age(counted) < good_for)
    }
}

/// The numbers of all tenants that have a limit.
pub(crate) struct Waiting {
    log: TaskLog,
    tenants: Mutex<HashMap<TenantId, Number>>,
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
        if let Some(number) = self.waiting.tenants().get_mut(&self.tenant) {
            number.coming -= 1;
            if self.taken {
                number.waiting += 1;
                number.since += 1;
            }
        }
    }
}

impl Waiting {
    pub(crate) fn new(log: TaskLog) -> Self {
        let tenants = Mutex::default();
        Self { log, tenants }
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Number>> {
        // After a panic it still holds whole numbers.
        self.tenants.lock().unwrap_or_else(|e| e.into_inner())
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
                let mut tenants = self.tenants();
                make_room(&mut tenants, tenant);
                let number = tenants.entry(tenant.clone()).or_insert_with(Number::new);
                let full = number.there() >= i64::from(limit.get());
                if number.is_good(full, Instant::now()) {
                    if full {
                        return Err(too_many(limit).into());
                    }
                    number.coming += 1;
                    return Ok(Place {
                        waiting: self,
                        tenant: tenant.clone(),
                        taken: false,
                    });
                }
                number.turn.clone()
            };
            self.count(tenant, turn).await?;
        }
    }

    /// How one is refused that would come now, as far as is known without counting.
    pub(crate) fn refusal(&self, tenant: &TenantId, limit: NonZeroU32) -> Option<Failure> {
        let tenants = self.tenants();
        let number = tenants.get(tenant)?;
        let full = number.there() >= i64::from(limit.get());
        (full && number.is_good(true, Instant::now())).then(|| too_many(limit))
    }

    /// Counts anew; whoever comes while someone counts waits for that instead.
    async fn count(&self, tenant: &TenantId, turn: Arc<Turn<()>>) -> Result<(), TaskLogError> {
        let Ok(_turn) = turn.try_lock() else {
            drop(turn.lock().await);
            return Ok(());
        };
        let began = Instant::now();
        if let Some(number) = self.tenants().get_mut(tenant) {
            number.since = 0;
        }
        let waiting = self.log.waiting(tenant).await?;
        if let Some(number) = self.tenants().get_mut(tenant) {
            // Some of those may have been counted already: rather too many than too few, until the next time.
            number.waiting = i64::try_from(waiting).unwrap_or(i64::MAX / 2) + number.since;
            number.took = began.elapsed();
            number.counted = Some(Instant::now());
        }
        Ok(())
    }

    /// A task of the tenant was handed to a worker.
    pub(crate) fn left(&self, tenant: &TenantId) {
        if let Some(number) = self.tenants().get_mut(tenant) {
            number.waiting -= 1;
        }
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

fn too_many(limit: NonZeroU32) -> Failure {
    let text = format!(
        "{limit} of your tasks wait, as many as the policy of your key allows (tasks_waiting); try again when some have been \
         taken up"
    );
    Failure {
        retry_after: Some(RETRY_AFTER),
        ..Failure::new(ErrorCode::TooManyTasks, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        number.counted = Some(now);
        assert!(number.is_good(false, now + Duration::from_secs(4)));
        assert!(!number.is_good(true, now + Duration::from_secs(4)));
        number.took = Duration::from_secs(1);
        assert!(number.is_good(true, now + Duration::from_secs(19)));
    }
}
