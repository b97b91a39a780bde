//! Calls of many callers on their way to one peer, several in one.
//!
//! What a call costs besides its work (headers, a stream, two wake-ups on either side) is most of what a short call costs. So
//! while [`OPENING`] groups wait for their first answer, further calls queue up, for [`PATIENCE`] at most; the next group takes all
//! that wait. A lone call never waits for company, and the groups grow with the load. A slow call holds up no other: the peer
//! answers each as it is ready (`each`), and a group whose first answer is there makes room for the next. A group that nobody waits for
//! any more is taken back. How many calls may be under way at all follows from how long they take (`limit`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::limit::Limit;
use crate::{deadline, metrics};

/// Calls in one group.
pub const MAX_GROUP: usize = 64;
/// Groups without any answer yet, beyond which calls wait for company.
const OPENING: usize = 1;
/// How long they do, or for as long as the last group has gone before them: who sends each call by itself, just behind another, spends more on
/// sending than on what is sent.
const PATIENCE: Duration = Duration::from_millis(1);
/// Groups under way; further calls wait in the queue.
const UNDER_WAY: usize = 1024;
/// Calls in the queue; further callers wait outside.
const WAITING: usize = 4096;
/// When those may come again for whom there is no room.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// One call of a group, with what headers of its own would carry.
#[derive(Debug, Clone)]
pub struct Asked<Q> {
    /// What is asked.
    pub question: Q,
    /// How long its caller waits.
    pub timeout: Duration,
    /// W3C trace context; empty without one.
    pub traceparent: String,
}

/// Answers by the numbers of their calls, in the order in which they are ready.
pub type Answers<A> = BoxStream<'static, Result<Vec<(u32, Result<A, Failure>)>, Failure>>;

type Call<Q, A> =
    dyn Fn(Vec<Asked<Q>>) -> BoxFuture<'static, Result<Answers<A>, Failure>> + Send + Sync;
type Answer<A> = oneshot::Sender<Result<A, Failure>>;

struct Pending<Q, A> {
    asked: Asked<Q>,
    answer: Answer<A>,
    since: Instant,
}

/// Where calls go in.
pub struct Gather<Q, A> {
    peer: &'static str,
    timeout: Duration,
    calls: mpsc::Sender<Pending<Q, A>>,
    limit: Arc<Mutex<Limit>>,
}

/// One of the calls under way, or several that go as one, until it is dropped.
#[must_use = "they are under way for as long as it lives"]
pub struct UnderWay<'a> {
    peer: &'static str,
    limit: &'a Mutex<Limit>,
    calls: usize,
    since: Instant,
    answered: bool,
}

impl<'a> UnderWay<'a> {
    /// `None` where there is no room.
    fn enter(peer: &'static str, limit: &'a Mutex<Limit>, calls: usize) -> Option<Self> {
        let entered = locked(limit).enter(calls);
        entered.then(|| Self::new(peer, limit, calls))
    }

    fn enter_in_any_case(peer: &'static str, limit: &'a Mutex<Limit>) -> Self {
        locked(limit).enter_in_any_case();
        Self::new(peer, limit, 1)
    }

    /// Of calls that have entered.
    fn new(peer: &'static str, limit: &'a Mutex<Limit>, calls: usize) -> Self {
        Self {
            peer,
            limit,
            calls,
            since: Instant::now(),
            answered: false,
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = self.answered.then(|| now - self.since);
        let mut limit = locked(self.limit);
        let before = limit.most();
        match self.calls {
            1 => limit.leave(now, took),
            calls => limit.leave_together(calls),
        }
        if limit.most() != before {
            metrics::limit(self.peer, limit.most());
        }
    }
}

fn locked(limit: &Mutex<Limit>) -> MutexGuard<'_, Limit> {
    // Every change leaves it whole.
    limit.lock().unwrap_or_else(|e| e.into_inner())
}

impl<Q, A> Clone for Gather<Q, A> {
    fn clone(&self) -> Self {
        Self {
            peer: self.peer,
            timeout: self.timeout,
            calls: self.calls.clone(),
            limit: self.limit.clone(),
        }
    }
}

/// What sends them; somebody has to [run](Gatherer::run) it.
pub struct Gatherer<Q, A> {
    peer: &'static str,
    timeout: Duration,
    calls: mpsc::Receiver<Pending<Q, A>>,
    call: Box<Call<Q, A>>,
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    /// Calls to `peer` that take `timeout` at most, sent in groups by `call`.
    pub fn new<C>(peer: &'static str, timeout: Duration, call: C) -> (Self, Gatherer<Q, A>)
    where
        C: Fn(Vec<Asked<Q>>) -> BoxFuture<'static, Result<Answers<A>, Failure>>
            + Send
            + Sync
            + 'static,
    {
        let (sender, calls) = mpsc::channel(WAITING);
        let gather = Self {
            peer,
            timeout,
            calls: sender,
            limit: Arc::new(Mutex::new(Limit::new(Instant::now()))),
        };
        let gatherer = Gatherer {
            peer,
            timeout,
            calls,
            call: Box::new(call),
        };
        (gather, gatherer)
    }

    /// Asks, within the deadline of the work around it.
    ///
    /// # Errors
    /// What the peer answered; or that it did not, in time or at all; or, at once, that too many calls are under way for how long they
    /// take.
    pub async fn ask(&self, question: Q) -> Result<A, Failure> {
        let under_way = self.enter(1)?;
        self.ask_with(question, under_way).await
    }

    /// How many calls may be under way just now.
    pub fn most(&self) -> u32 {
        u32::try_from(locked(&self.limit).most()).unwrap_or(u32::MAX)
    }

    /// Room for calls to the same peer that somebody else sends as one; to be held until they are answered.
    ///
    /// # Errors
    /// Too many calls are under way for how long they take.
    pub fn enter(&self, calls: usize) -> Result<UnderWay<'_>, Failure> {
        UnderWay::enter(self.peer, &self.limit, calls.max(1)).ok_or_else(|| {
            metrics::over_limit(self.peer);
            let text = "the platform has more to do just now than it can; try again";
            Failure::unavailable(text, BUSY_WAIT)
        })
    }

    /// The same, whatever is under way: for those of whom there are never many, or who must be answered when others are not.
    ///
    /// # Errors
    /// What the peer answered; or that it did not, in time or at all.
    pub async fn ask_in_any_case(&self, question: Q) -> Result<A, Failure> {
        let under_way = UnderWay::enter_in_any_case(self.peer, &self.limit);
        self.ask_with(question, under_way).await
    }

    /// Asks with room that was [entered](Self::enter) before.
    ///
    /// # Errors
    /// What the peer answered; or that it did not, in time or at all.
    pub async fn ask_with(&self, question: Q, mut under_way: UnderWay<'_>) -> Result<A, Failure> {
        let (name, since) = (self.peer, under_way.since);
        let limit = deadline::onward(deadline::left(), self.timeout).ok_or_else(|| {
            let text = format!("the deadline has passed before {name} could be asked");
            Failure::new(ErrorCode::DeadlineExceeded, text)
        })?;
        let asked = Asked {
            question,
            timeout: limit,
            traceparent: telemetry::traceparent(&tracing::Span::current()).unwrap_or_default(),
        };
        let (answer, answered) = oneshot::channel();
        let pending = Pending {
            asked,
            answer,
            since,
        };
        let whole = async {
            let sent = self.calls.send(pending).await;
            sent.map_err(|_| unanswered(name))?;
            answered.await.map_err(|_| unanswered(name))?
        };
        match tokio::time::timeout_at(since + limit, whole).await {
            Ok(answer) => {
                under_way.answered = true;
                answer
            }
            Err(_) => {
                let text = format!("{name} did not answer within {limit:?}");
                Err(Failure::new(ErrorCode::DeadlineExceeded, text))
            }
        }
    }
}

fn unanswered(peer: &str) -> Failure {
    let text = format!("{peer} gave no answer; try again");
    Failure::unavailable(text, Duration::from_secs(1))
}

impl<Q: Send + 'static, A: Send + 'static> Gatherer<Q, A> {
    /// Sends what comes in until nobody can ask any more.
    pub async fn run(mut self) {
        let mut waiting = VecDeque::new();
        let mut opening = FuturesUnordered::new();
        let mut opened = FuturesUnordered::new();
        let mut open = true;
        let mut went: Option<Instant> = None;
        loop {
            if !waiting.is_empty() && waiting.len() < MAX_GROUP {
                // Who came in the same moment is heard before the first of them goes.
                tokio::task::yield_now().await;
            }
            while waiting.len() < MAX_GROUP
                && let Ok(pending) = self.calls.try_recv()
            {
                waiting.push_back(pending);
            }
            let oldest = waiting.front().map(|pending: &Pending<Q, A>| pending.since);
            let under_way = opening.len() + opened.len();
            let paced = went.is_none_or(|went| went.elapsed() >= PATIENCE);
            let may_go_alone = paced && opening.len() < OPENING;
            if let Some(oldest) = oldest
                && goes(waiting.len(), may_go_alone, under_way, oldest.elapsed())
            {
                went = Some(Instant::now());
                let group: Vec<_> = waiting.drain(..).collect();
                opening.push(self.send(group));
                continue;
            }
            if !open && waiting.is_empty() && under_way == 0 {
                return;
            }
            // A lone call goes as soon as the last group has gone a while ago.
            let earliest = match went {
                Some(went) if opening.len() < OPENING => oldest.map(|since| since.min(went)),
                _ => oldest,
            };
            let patience = earliest.map(|since| since + PATIENCE);
            tokio::select! {
                pending = self.calls.recv(), if open && waiting.len() < MAX_GROUP => match pending {
                    Some(pending) => waiting.push_back(pending),
                    None => open = false,
                },
                Some(rest) = opening.next() => if let Some(rest) = rest {
                    opened.push(rest);
                },
                Some(()) = opened.next() => {}
                () = until(patience), if under_way < UNDER_WAY => {}
            }
        }
    }

    /// Sends a group and waits for its first answers; gives what waits for the others, if there are any.
    fn send(
        &self,
        group: Vec<Pending<Q, A>>,
    ) -> impl Future<Output = Option<impl Future<Output = ()> + use<Q, A>>> + use<Q, A> {
        // A little later than the last of them gives up by itself, and says why.
        let (peer, until) = (self.peer, Instant::now() + self.timeout + PATIENCE);
        let (asked, answers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .filter_map(|one| still_asked(one).map(|(asked, answer)| (asked, Some(answer))))
            .unzip();
        metrics::group(peer, asked.len());
        let mut group = Group { peer, answers };
        let call = (!asked.is_empty()).then(|| (self.call)(asked));
        async move {
            let answers = tokio::select! {
                answers = call? => answers,
                () = all_gone(&mut group.answers) => return None,
            };
            let mut answers = match answers {
                Ok(answers) => answers,
                Err(failure) => {
                    group.fail(&failure);
                    return None;
                }
            };
            if !group.hear(&mut answers, until).await {
                return None;
            }
            Some(async move { while group.hear(&mut answers, until).await {} })
        }
    }
}

/// What is left of a call's time when it goes; `None` when whoever asked has given up, or is about to.
fn still_asked<Q, A>(pending: Pending<Q, A>) -> Option<(Asked<Q>, Answer<A>)> {
    let Pending {
        mut asked,
        answer,
        since,
    } = pending;
    asked.timeout = asked.timeout.saturating_sub(since.elapsed());
    let too_late = asked.timeout.is_zero() || answer.is_closed();
    (!too_late).then_some((asked, answer))
}

/// Whether those who wait go now.
fn goes(waiting: usize, may_go_alone: bool, under_way: usize, waited: Duration) -> bool {
    let company = may_go_alone || waiting >= MAX_GROUP || waited >= PATIENCE;
    waiting > 0 && company && under_way < UNDER_WAY
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// When none of these waits for its answer any more.
async fn all_gone<A>(answers: &mut [Option<Answer<A>>]) {
    // One after the other: those who are gone stay gone.
    for answer in answers.iter_mut().flatten() {
        answer.closed().await;
    }
}

/// Those of a group who wait for their answers.
struct Group<A> {
    peer: &'static str,
    answers: Vec<Option<Answer<A>>>,
}

impl<A> Group<A> {
    /// Hands on the next answers; false when there are no more to come.
    async fn hear(&mut self, answers: &mut Answers<A>, until: Instant) -> bool {
        let next = tokio::select! {
            // Later than that nobody waits.
            next = tokio::time::timeout_at(until, answers.next()) => next,
            () = all_gone(&mut self.answers) => return false,
        };
        match next {
            Ok(Some(Ok(some))) => {
                for (number, answer) in some {
                    let waits = self.answers.get_mut(number as usize).and_then(Option::take);
                    if let Some(waits) = waits {
                        // Whoever asked may be gone.
                        let _ = waits.send(answer);
                    }
                }
                self.answers.iter().any(Option::is_some)
            }
            Ok(Some(Err(failure))) => {
                self.fail(&failure);
                false
            }
            Ok(None) | Err(_) => {
                self.fail(&unanswered(self.peer));
                false
            }
        }
    }

    fn fail(&mut self, failure: &Failure) {
        for waits in self.answers.iter_mut().filter_map(Option::take) {
            let _ = waits.send(Err(failure.clone()));
        }
    }
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
