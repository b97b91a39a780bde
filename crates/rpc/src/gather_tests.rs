//! Callers beside peers that answer, are slow, or say nothing.

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

#[tokio::test(start_paused = true)]
async fn a_lone_call_goes_at_once_and_one_just_behind_another_waits_for_company() {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let (gather, gatherer) = Gather::new("halves", LONG, move |asked| {
        seen.lock().unwrap().push(asked.len());
        halves(asked)
    });
    let asked = async {
        for pause in [2 * PATIENCE, PATIENCE / 2] {
            let began = Instant::now();
            gather.ask(2).await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
            tokio::time::sleep(pause).await;
        }
        // Half of the patience after the last group: not for the whole of it.
        let began = Instant::now();
        futures::future::join_all([4, 6].map(|number| gather.ask(number))).await;
        assert!(began.elapsed() <= PATIENCE, "{:?}", began.elapsed());
        drop(gather);
    };
    tokio::join!(asked, gatherer.run());
    assert_eq!(*sizes.lock().unwrap(), [1, 1, 2]);
}

/// Tells when it is dropped.
struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.take().map(|tell| tell.send(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_nobody_waits_for_is_taken_back_and_one_that_somebody_does_is_not() {
    // Before any answer has come, and after the first.
    for answers_first in [false, true] {
        let (tell, mut told) = oneshot::channel();
        let tell = Mutex::new(Some(tell));
        let (gather, gatherer) = Gather::new("slow", LONG, move |_: Vec<Asked<u32>>| {
            let held = Dropped(tell.lock().unwrap().take());
            let first = answers_first.then_some(Ok(Vec::new()));
            let rest = stream::pending().inspect(move |_: &Result<_, _>| _ = &held);
            let answers: Answers<u32> = stream::iter(first).chain(rest).boxed();
            async move { Ok(answers) }.boxed()
        });
        let running = gatherer.run();
        let asked = async {
            let first = gather.ask(1);
            let second = gather.ask(2);
            let second = tokio::time::timeout(2 * PATIENCE, second);
            let both = futures::future::join(first, second);
            let both = tokio::time::timeout(20 * PATIENCE, both);
            tokio::time::sleep(10 * PATIENCE).await;
            assert!(both.await.is_err());
            tokio::time::timeout(PATIENCE, &mut told)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(gather.limit.lock().unwrap().most(), 4096);
            drop(gather);
        };
        tokio::join!(asked, running);
    }
}

#[tokio::test(start_paused = true)]
async fn over_the_limit_some_are_refused_and_those_who_must_not_be_are_not() {
    let (gather, gatherer) = Gather::new("halves", LONG, halves);
    let most = gather.limit.lock().unwrap().most();
    for _ in 0..most {
        assert!(gather.limit.lock().unwrap().enter(1));
    }
    let asked = async {
        let refused = gather.ask(2).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(refused.retry_after.is_some());
        assert_eq!(gather.ask_in_any_case(2).await.unwrap(), 1);
        gather.limit.lock().unwrap().leave(Instant::now(), None);
        assert_eq!(gather.ask(4).await.unwrap(), 2);
        drop(gather);
    };
    tokio::join!(asked, gatherer.run());
}

#[tokio::test(start_paused = true)]
async fn calls_that_go_as_one_take_the_room_of_all_of_them_until_they_are_answered() {
    let (gather, gatherer) = Gather::new("halves", LONG, halves);
    let most = gather.limit.lock().unwrap().most();
    let asked = async {
        let batches: Vec<_> = (0..most.div_ceil(100)).map(|_| gather.enter(100)).collect();
        assert!(batches.iter().all(Result::is_ok));
        let refused = gather.enter(100).err().unwrap();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(refused.retry_after.is_some());
        assert!(gather.ask(2).await.is_err());
        drop(batches);
        assert_eq!(gather.ask(4).await.unwrap(), 2);
        assert!(gather.enter(100).is_ok());
        drop(gather);
    };
    tokio::join!(asked, gatherer.run());
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
        waiting in 1..=MAX_GROUP, alone: bool, under_way in 0..UNDER_WAY, micros in 0..3000u64,
    ) {
        let waited = Duration::from_micros(micros);
        let now = goes(waiting, alone, under_way, waited);
        prop_assert!(now || waited < PATIENCE);
        prop_assert!(now || !alone);
    }
}
