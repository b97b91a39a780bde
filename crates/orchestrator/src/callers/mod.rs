//! Whom a call is for. The gateway says so and shows auth's word on it, an assertion ([`contract::assertion`]), so that whoever only reaches
//! our port acts for nobody, and nobody gives a caller more than its policy does (`docs/adr/0026-certificates-name-services.md`).
//!
//! Assertions are verified by the keys that auth publishes: read at the start, now and then, and when one is named that is not held. A
//! key is published before it signs and for as long as what it has signed is good, so none is refused for a rotation. One that the auth which was
//! asked cannot open just now is kept, as others may sign with it ([`contract::token_keys`]).

mod seen;
mod verify;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use contract::auth::{Caller, ListTokenKeysResponse};
use contract::token_keys::KnownKeys;
use contract::{ErrorCode, Failure};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use lifecycle::Service;
use task_log::TaskLog;
use tokio::sync::{Mutex, oneshot};

use crate::auth::Auth;
use verify::{Problem, Verifier};

/// Between two looks at the published keys. Auth publishes one for an hour before it signs.
const READ_EVERY: Duration = Duration::from_secs(300);
/// The same while auth does not answer.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// They are not read more often than this, whatever keys are named: anyone can make one up.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

type Read = Result<ListTokenKeysResponse, Failure>;

/// Says whom calls are for. One for the whole service.
pub(crate) struct Callers {
    /// Whether auth's word is asked for, or the gateway's is enough.
    demanded: bool,
    verifier: Verifier,
    read_keys: Box<dyn Fn() -> BoxFuture<'static, Read> + Send + Sync>,
    /// Whoever holds it reads them.
    reading: Mutex<Reading>,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

/// How far the reading of the keys is.
#[derive(Default)]
struct Reading {
    /// One that has begun, and when: whoever waited for it may have hung up, and the next goes on with it.
    under_way: Option<(SystemTime, BoxFuture<'static, Read>)>,
    /// When they were read last, and what came of it.
    last: Option<(SystemTime, Result<(), Failure>)>,
    /// What all of them have told.
    known: KnownKeys,
}

impl Callers {
    /// Keeps the keys up to date for as long as the service runs. Times are compared by the broker's clock.
    pub(crate) fn start(
        service: &Service,
        auth: &Auth,
        log: &TaskLog,
        demanded: bool,
    ) -> Arc<Self> {
        let (auth, log, tasks) = (auth.clone(), log.clone(), service.tasks.clone());
        // In a task of its own, where it has the time that a call may take and not what the caller who needs it first has left.
        let read_keys = move || {
            let (auth, (done, answer)) = (auth.clone(), oneshot::channel());
            tasks.job("read caller keys", async move {
                // Nobody may be there any more.
                let _ = done.send(auth.token_keys().await);
            });
            let stopped = |_| Failure::unavailable("this orchestrator is stopping", LEAST_PAUSE);
            async move { answer.await.map_err(stopped)? }.boxed()
        };
        let callers = Arc::new(Self::new(demanded, read_keys, move || log.now()));
        if !demanded {
            tracing::warn!(
                "callers.demand_assertion is off: whoever reaches this port acts for any tenant"
            );
            return callers;
        }
        let (reader, stopping) = (callers.clone(), service.tasks.stopping());
        service.tasks.critical("caller keys", async move {
            tokio::select! {
                () = stopping => {}
                () = reader.keep_up() => {}
            }
            Ok::<(), Infallible>(())
        });
        callers
    }

    fn new(
        demanded: bool,
        read_keys: impl Fn() -> BoxFuture<'static, Read> + Send + Sync + 'static,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        Self {
            demanded,
            verifier: Verifier::new(),
            read_keys: Box::new(read_keys),
            reading: Mutex::default(),
            clock: Box::new(clock),
        }
    }

    async fn keep_up(&self) {
        loop {
            let pause = match self.read().await {
                Ok(()) => READ_EVERY,
                Err(failure) => {
                    tracing::debug!(%failure, "auth's keys cannot be read; trying again");
                    READ_AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// The caller that a submission is for: as auth says, whatever else the gateway says of it.
    ///
    /// # Errors
    /// Invalid without a caller; unauthenticated without auth's word on it, or with one that is not good; permission denied with one on
    /// another caller; unavailable when it is signed by a key that cannot be read just now.
    pub(crate) async fn admit(&self, caller: Option<Caller>) -> Result<Arc<Caller>, Failure> {
        let said = caller.ok_or_else(|| Failure::invalid("caller", "caller is missing"))?;
        if !self.demanded {
            return Ok(Arc::new(said));
        }
        let known = self.known(&said.assertion).await?;
        if known.tenant == said.tenant && known.app_key == said.app_key {
            return Ok(known);
        }
        Err(of_another(&known))
    }

    /// Whether a call may be for this tenant.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub(crate) async fn admit_tenant(&self, tenant: &str, assertion: &str) -> Result<(), Failure> {
        if !self.demanded {
            return Ok(());
        }
        let known = self.known(assertion).await?;
        match known.tenant == tenant {
            true => Ok(()),
            false => Err(of_another(&known)),
        }
    }

    async fn known(&self, assertion: &str) -> Result<Arc<Caller>, Failure> {
        let now = self.now();
        match self.verifier.verify(assertion, now) {
            Err(Problem::UnknownKey) => {
                // In a box: hardly any call needs it.
                Box::pin(self.read()).await?;
                self.verifier.verify(assertion, now).map_err(refused)
            }
            known => known.map_err(refused),
        }
    }

    /// Reads the keys, unless that was done just now; several who want to wait for one of them.
    async fn read(&self) -> Result<(), Failure> {
        let mut reading = self.reading.lock().await;
        let now = (self.clock)();
        // By a clock that went back it was at no time known.
        let just_now = |at| {
            now.duration_since(at)
                .is_ok_and(|since| since < LEAST_PAUSE)
        };
        if let Some((at, read)) = &reading.last
            && just_now(*at)
        {
            return read.clone();
        }
        let begun = reading.under_way.take();
        let begun = begun.filter(|(began, _)| just_now(*began));
        let begun = begun.unwrap_or_else(|| (now, (self.read_keys)()));
        let (_, answer) = reading.under_way.insert(begun);
        let answer = answer.await;
        reading.under_way = None;
        let read = self.learn(&mut reading.known, answer);
        reading.last = Some(((self.clock)(), read.clone()));
        read
    }

    /// Takes what auth has answered. One that has no key to show says nothing of those that others sign with.
    fn learn(&self, known: &mut KnownKeys, answer: Read) -> Result<(), Failure> {
        match answer {
            Ok(answer) if answer.keys.is_empty() => tracing::debug!("auth publishes no key"),
            Ok(answer) => {
                if !answer.unopened.is_empty() {
                    let unopened = &answer.unopened;
                    tracing::warn!(?unopened, "an auth cannot open all keys; those known stay");
                }
                if self.verifier.learn(&known.learn(answer, (self.clock)())) {
                    return Ok(());
                }
                tracing::debug!("no key that auth publishes can be read");
            }
            Err(failure) => tracing::debug!(%failure, "auth's keys cannot be read"),
        }
        let text = "it cannot be verified just now whom the call is for; try again";
        Err(Failure::unavailable(text, LEAST_PAUSE))
    }

    fn now(&self) -> i64 {
        let since = (self.clock)().duration_since(UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs();
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }
}

fn refused(problem: Problem) -> Failure {
    count(problem.word());
    tracing::debug!(%problem, "a call was refused: auth's word on its caller is not good");
    let text = format!("auth's word on whom the call is for {problem}");
    Failure::new(ErrorCode::Unauthenticated, text)
}

fn count(why: &'static str) {
    metrics::counter!("inkstone_orchestrator_assertions_refused_total", "why" => why).increment(1);
}

fn of_another(known: &Caller) -> Failure {
    count("of_another");
    tracing::warn!(
        of = known.tenant,
        "a call for one caller showed auth's word on another"
    );
    let text = "auth's word on whom the call is for is on somebody else";
    Failure::new(ErrorCode::PermissionDenied, text)
}

#[cfg(test)]
mod tests;
