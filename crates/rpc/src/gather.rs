//! Calls of many callers on their way to one peer, several in one.
//!
//! What a call costs besides its work (headers, a stream, two wake-ups on either side) is most of what a short call costs. So
//! while [`OPENING`] groups wait for their first answer, further calls queue up, for [`PATIENCE`] at most; the next group takes all
//! that wait. A lone call never waits for company, and the groups grow with the load. A slow call holds up no other: the peer
//! answers each as it is ready (`each`), and a group whose first answer is there makes room for the next.

use std::collections::VecDeque;
use std::time::Duration;

use contract::{ErrorCode, Failure};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::deadline;

/// Calls in one group.
pub const MAX_GROUP: usize = 64;
/// Groups without any answer yet, beyond which calls wait for company.
const OPENING: usize = 2;
/// How long they do.
const PATIENCE: Duration = Duration::from_millis(1);
/// Groups under way; further calls wait in the queue.
const UNDER_WAY: usize = 1024;
/// Calls in the queue; further callers wait outside.
const WAITING: usize = 4096;

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
}

impl<Q, A> Clone for Gather<Q, A> {
    fn clone(&self) -> Self {
        Self {
            peer: self.peer,
            timeout: self.timeout,
            calls: self.calls.clone(),
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
    /// What the peer answered; or that it did not, in time or at all.
    pub async fn ask(&self, question: Q) -> Result<A, Failure> {
        let name = self.peer;
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
        let since = Instant::now();
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
            Ok(answer) => answer,
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
        loop {
            while waiting.len() < MAX_GROUP
                && let Ok(pending) = self.calls.try_recv()
            {
                waiting.push_back(pending);
            }
            let oldest = waiting.front().map(|pending: &Pending<Q, A>| pending.since);
            let under_way = opening.len() + opened.len();
            if let Some(oldest) = oldest
                && goes(waiting.len(), opening.len(), under_way, oldest.elapsed())
            {
                let group: Vec<_> = waiting.drain(..).collect();
                opening.push(self.send(group));
                continue;
            }
            if !open && waiting.is_empty() && under_way == 0 {
                return;
            }
            let patience = oldest.map(|since| since + PATIENCE);
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
        let (peer, until) = (self.peer, Instant::now() + self.timeout);
        let (asked, answers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .filter_map(|one| still_asked(one).map(|(asked, answer)| (asked, Some(answer))))
            .unzip();
        metrics::histogram!("inkstone_rpc_group_size", "peer" => peer).record(asked.len() as f64);
        let mut group = Group { peer, answers };
        let call = (!asked.is_empty()).then(|| (self.call)(asked));
        async move {
            let mut answers = match call?.await {
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
fn goes(waiting: usize, opening: usize, under_way: usize, waited: Duration) -> bool {
    let company = opening < OPENING || waiting >= MAX_GROUP || waited >= PATIENCE;
    waiting > 0 && company && under_way < UNDER_WAY
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
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
        // Later than that nobody waits.
        let next = tokio::time::timeout_at(until, answers.next()).await;
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
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::{FutureExt as _, stream};
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn invalid(number: u32) -> Failure {
        Failure::invalid("number", format!("{number} is odd"))
    }

    /// A peer that answers even numbers with their halves and refuses odd ones, a message for each.
    fn halves(asked: Vec<Asked<u32>>) -> BoxFuture<'static, Result<Answers<u32>, Failure>> {
        let numbers = 0..asked.len() as u32;
        let answers = asked.into_iter().zip(numbers).map(|(asked, call)| {
            let number = asked.question;
            let answer = match number % 2 {
                0 => Ok(number / 2),
                _ => Err(invalid(number)),
            };
            Ok(vec![(call, answer)])
        });
        // Not in the order in which they were asked.
        let mut answers: Vec<_> = answers.collect();
        answers.reverse();
        async move { Ok(stream::iter(answers).boxed()) }.boxed()
    }

    #[tokio::test]
    async fn each_caller_gets_its_own_answer() {
        let (gather, gatherer) = Gather::new("halves", LONG, halves);
        let asked = async {
            let all = (0..500).map(|number| gather.ask(number));
            let answers = futures::future::join_all(all).await;
            drop(gather);
            answers
        };
        let (answers, ()) = tokio::join!(asked, gatherer.run());
        for (number, answer) in (0..).zip(answers) {
            match number % 2 {
                0 => assert_eq!(answer.unwrap(), number / 2),
                _ => assert_eq!(answer.unwrap_err(), invalid(number)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_holds_up_no_other_and_ends_by_its_own_time_limit() {
        let (gather, gatherer) = Gather::new("slow", LONG, |asked: Vec<Asked<u32>>| {
            let (slow, quick): (Vec<_>, Vec<_>) =
                (0..).zip(asked).partition(|(_, asked)| asked.question == 0);
            let quick = quick.into_iter().map(|(call, _)| (call, Ok(())));
            let quick: Vec<(u32, Result<(), Failure>)> = quick.collect();
            async move {
                let first = (!quick.is_empty()).then_some(Ok(quick));
                let rest = slow.is_empty().then_some(stream::empty().boxed());
                let rest = rest.unwrap_or_else(|| stream::pending().boxed());
                Ok(stream::iter(first).chain(rest).boxed())
            }
            .boxed()
        });
        let began = Instant::now();
        let asked = async {
            // Many more slow ones than groups may be opening.
            let slow = (0..10).map(|_| gather.ask(0));
            let slow = futures::future::join_all(slow);
            let quick = async {
                for _ in 0..100 {
                    gather.ask(1).await.unwrap();
                }
                began.elapsed()
            };
            let (slow, quick) = tokio::join!(slow, quick);
            drop(gather);
            (slow, quick)
        };
        let ((slow, quick), ()) = tokio::join!(asked, gatherer.run());
        assert!(quick < LONG / 100, "{quick:?}");
        for answer in slow {
            assert_eq!(answer.unwrap_err().code, ErrorCode::DeadlineExceeded);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_groups_are_opening_calls_gather() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let (gather, gatherer) = Gather::new("halves", LONG, move |asked| {
            seen.lock().unwrap().push(asked.len());
            async move {
                tokio::time::sleep(PATIENCE / 2).await;
                halves(asked).await
            }
            .boxed()
        });
        let asked = async {
            let all = (0..1000).map(|number| gather.ask(number));
            futures::future::join_all(all).await;
            drop(gather);
        };
        tokio::join!(asked, gatherer.run());
        let sizes = sizes.lock().unwrap();
        assert_eq!(sizes.iter().sum::<usize>(), 1000);
        assert!(sizes.len() <= 2 + 1000 / MAX_GROUP + 1, "{sizes:?}");
    }

    #[tokio::test]
    async fn what_the_peer_leaves_unanswered_is_told() {
        let (gather, gatherer) = Gather::<u32, u32>::new("silent", LONG, |_| {
            async { Ok(stream::empty().boxed()) }.boxed()
        });
        let asked = async {
            let answer = gather.ask(1).await;
            drop(gather);
            answer
        };
        let (answer, ()) = tokio::join!(asked, gatherer.run());
        let failure = answer.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after.is_some());
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_patience_while_there_is_room(
            waiting in 1..=MAX_GROUP, opening in 0..10usize, more in 0..10usize, micros in 0..3000u64,
        ) {
            let waited = Duration::from_micros(micros);
            let now = goes(waiting, opening, opening + more, waited);
            prop_assert!(now || waited < PATIENCE);
            prop_assert!(now || opening >= OPENING);
        }
    }
}
