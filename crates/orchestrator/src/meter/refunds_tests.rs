//! Refunds on a real broker.

use std::collections::BTreeSet;
use std::pin::pin;
use std::task::Poll;

use contract::v1::SubmitTask;
use nats_server::NatsServer;

use super::super::tests::{
    NOON, ROOM, account, broker, charge, images, limit, noon, place, place_of_two, record, stored,
    used,
};
use super::*;

/// A task of one picture.
fn task(id: &str) -> Submitted {
    let mut at = contract::now();
    at.seconds = NOON.cast_signed();
    Submitted {
        task_id: id.to_owned(),
        tenant: "acme".to_owned(),
        charged_to: "prod".to_owned(),
        at: Some(at),
        request: Some(SubmitTask {
            images: 1,
            ..SubmitTask::default()
        }),
        ..Submitted::default()
    }
}

fn tasks(count: usize) -> Vec<Submitted> {
    (0..count)
        .map(|number| task(&format!("t-{number}")))
        .collect()
}

/// Gives all of them back at once, and says of which it is known.
async fn refund_all(meter: &Meter, tasks: &[Submitted]) -> BTreeSet<String> {
    let asked: Vec<_> = tasks.iter().map(|task| meter.refund(task)).collect();
    let mut given_back = BTreeSet::new();
    for (task, answer) in tasks.iter().zip(join_all(asked).await) {
        match answer {
            Ok(()) => drop(given_back.insert(task.task_id.clone())),
            Err(error) => assert!(matches!(error, BrokerError::Full { .. }), "{error}"),
        }
    }
    given_back
}

#[tokio::test]
async fn what_is_given_back_can_be_charged_again_here_and_elsewhere() {
    let (_server, one, two) = place_of_two().await;
    let acme = account("acme", "prod");
    charge(&one, &acme, 3, 3).await.unwrap();
    charge(&one, &acme, 3, 1).await.unwrap_err();
    // Yesterday's is gone; today's, given back by one that did not charge it, counts once.
    let mut old = task("old");
    old.at.as_mut().unwrap().seconds -= DAY.cast_signed();
    two.refund(&old).await.unwrap();
    charge(&two, &acme, 3, 1).await.unwrap_err();
    for task in tasks(2) {
        two.refund(&task).await.unwrap();
    }
    charge(&two, &acme, 3, 1).await.unwrap();
    charge(&one, &acme, 3, 1).await.unwrap();
    charge(&one, &acme, 3, 1).await.unwrap_err();
    charge(&two, &acme, 3, 1).await.unwrap_err();
}

#[tokio::test]
async fn a_task_that_was_dated_before_midnight_and_charged_after_it_is_given_back_on_the_day_that_was_charged()
 {
    let (_server, meter) = place().await;
    let acme = account("acme", "prod");
    let charged = meter.charge(&acme, limit(1), images(1)).await.unwrap();
    let today = charged.day();
    charged.keep();
    let dated = |days: u64, charged_day| {
        let mut task = task(&format!("t-{days}-{charged_day}"));
        task.at.as_mut().unwrap().seconds -= (days * DAY).cast_signed();
        task.charged_day = charged_day;
        task
    };
    meter.refund(&dated(0, today - 1)).await.unwrap();
    meter.refund(&dated(1, 0)).await.unwrap();
    charge(&meter, &acme, 1, 1).await.unwrap_err();
    meter.refund(&dated(1, today)).await.unwrap();
    charge(&meter, &acme, 1, 1).await.unwrap();
}

#[tokio::test]
async fn a_task_that_was_charged_to_nobody_leaves_no_record() {
    let (_server, meter) = place().await;
    let free = Submitted {
        charged_to: String::new(),
        ..task("free")
    };
    meter.refund(&free).await.unwrap();
    assert!(!meter.refunds.holds(&refund_name(&free)).await.unwrap());
}

#[tokio::test]
async fn one_that_was_killed_between_the_two_writes_has_given_back_and_nobody_does_again() {
    let (_server, one, two) = place_of_two().await;
    let acme = account("acme", "prod");
    charge(&one, &acme, 10, 10).await.unwrap();
    let (first, next) = (task("first"), task("next"));
    let noted = async || two.refunds.holds(&refund_name(&first)).await.unwrap();

    let (told, _hears) = oneshot::channel();
    let refund = Refund {
        day: NOON / DAY,
        name: refund_name(&first),
        charged: images(1),
        told,
    };
    let held = one.account(&acme);
    let (batch, mut known, record) = ([refund], Vec::new(), record());
    let written = one.take_back(&record, &held, &batch, &mut known).await;
    assert_eq!(written.unwrap().new, [refund_name(&first)]);
    assert_eq!((used(&two.bucket).await, noted().await), (9, false));

    two.refund(&first).await.unwrap();
    assert_eq!((used(&two.bucket).await, noted().await), (9, true));
    // Its name goes with the next, and it is known all the same.
    two.refund(&next).await.unwrap();
    assert_eq!(
        stored(&two.bucket).await.value.refunds,
        [refund_name(&next)]
    );
    one.refund(&first).await.unwrap();
    assert_eq!(used(&two.bucket).await, 8);
}

/// Drops a future when it was polled so many times and is woken again.
async fn cut_off(mut polls: usize, future: impl Future) {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        if polls == 0 {
            return Poll::Ready(());
        }
        polls -= 1;
        future.as_mut().poll(context).map(drop)
    })
    .await;
}

#[tokio::test]
async fn one_that_is_given_up_anywhere_on_its_way_is_given_back_once_by_the_next() {
    const PLACES: usize = 24;
    let (_server, one, two) = place_of_two().await;
    charge(&one, &account("acme", "prod"), 1000, 100)
        .await
        .unwrap();
    let before = used(&one.bucket).await;
    for (polls, task) in tasks(PLACES).iter().enumerate() {
        cut_off(polls, one.refund(task)).await;
        two.refund(task).await.unwrap();
    }
    refund_all(&one, &tasks(PLACES)).await;
    assert_eq!(used(&two.bucket).await, before - PLACES as u64);
}

#[tokio::test]
async fn refunds_that_arrive_together_are_written_together() {
    let (_server, meter) = place().await;
    charge(&meter, &account("acme", "prod"), 1000, 100)
        .await
        .unwrap();
    let before = stored(&meter.bucket).await;
    let tasks = tasks(20);
    assert_eq!(refund_all(&meter, &tasks).await.len(), 20);
    let after = stored(&meter.bucket).await;
    assert_eq!(after.value.used.images, before.value.used.images - 20);
    // Each is seen at once by whoever comes first, and the others while that one writes.
    assert_eq!(after.revision, before.revision + 2);
    assert_eq!(refund_all(&meter, &tasks).await.len(), 20);
    assert_eq!(stored(&meter.bucket).await, after);
}

#[tokio::test]
async fn where_refunds_have_no_room_they_are_named_in_the_day_and_more_wait_for_it() {
    const MORE: usize = MAX_NAMED + 40;
    let server = NatsServer::scratch().unwrap();
    let broker = broker(&server).await;
    let small = Meter::open(&broker, noon, ByteSize::of(1024))
        .await
        .unwrap();
    charge(&small, &account("acme", "prod"), 10_000, 1000)
        .await
        .unwrap();
    let before = used(&small.bucket).await;
    let tasks = tasks(MORE);
    let mut given_back = BTreeSet::new();
    for _ in 0..3 {
        given_back.append(&mut refund_all(&small, &tasks).await);
        assert!((MAX_NAMED..MORE).contains(&given_back.len()));
        assert_eq!(used(&small.bucket).await, before - given_back.len() as u64);
    }
    let named = stored(&small.bucket).await.value.refunds.len();
    assert!(named <= MAX_NAMED, "{named}");

    let large = Meter::open(&broker, noon, ROOM).await.unwrap();
    for _ in 0..2 {
        assert_eq!(refund_all(&large, &tasks).await.len(), MORE);
        assert_eq!(used(&large.bucket).await, before - MORE as u64);
    }
}
