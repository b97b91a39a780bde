//! Doubts on a real broker.

use nats_server::NatsServer;
use task_log::StreamSettings;

use super::super::tests::{
    NOON, account, broker, charge, images, limit, open, place, stored, used,
};
use super::*;
use crate::allowed::{Allowed, InDoubt};

/// Two orchestrators, and the log.
struct Bench {
    _server: NatsServer,
    one: Meter,
    two: Meter,
}

impl Bench {
    async fn start() -> Self {
        let server = NatsServer::scratch().unwrap();
        let broker = broker(&server).await;
        let (one, two) = tokio::join!(open(&broker), open(&broker));
        let streams = StreamSettings::small();
        one.log.ensure_streams(&streams).await.unwrap();
        Self {
            _server: server,
            one,
            two,
        }
    }

    async fn store(&self, submitted: &Submitted) {
        self.two.log.submit(submitted).await.unwrap();
    }

    /// Names of tasks that are in doubt, as is stored.
    async fn doubted(&self) -> Vec<String> {
        let doubts = stored(&self.two.bucket).await.value.doubts;
        doubts.into_iter().map(|doubt| doubt.task).collect()
    }
}

/// The `number`-th attempt at the task of an idempotency key.
fn attempt(key: &str, number: i32) -> Submitted {
    let tenant = "acme".parse().unwrap();
    let mut at = contract::now();
    at.nanos = number;
    Submitted {
        task_id: TaskId::derived(&tenant, key).to_string(),
        tenant: tenant.to_string(),
        lane: "standard-image".to_owned(),
        at: Some(at),
        ..Submitted::default()
    }
}

/// Charges so many pictures of `most` for an attempt of which nothing is heard then.
async fn in_doubt(meter: &Meter, most: u64, ask: u64, submitted: &Submitted) {
    let acme = account("acme", "prod");
    let charged = meter.charge(&acme, limit(most), images(ask)).await;
    charged.unwrap().in_doubt(Attempt::of(submitted));
}

#[tokio::test]
async fn a_repetition_of_what_was_not_stored_is_charged_once_though_the_first_is_killed() {
    let bench = Bench::start().await;
    let (two, acme) = (&bench.two, account("acme", "prod"));
    in_doubt(&bench.one, 3, 1, &attempt("k", 1)).await;
    bench.one.put_back(Duration::ZERO).await;
    let again = attempt("k", 2);
    assert_eq!(bench.doubted().await, std::slice::from_ref(&again.task_id));

    charge(two, &acme, 3, 1).await.unwrap();
    charge(two, &acme, 3, 2).await.unwrap_err();
    bench.store(&again).await;
    // The log was looked at just now.
    let looked_again = async {
        while charge(two, &acme, 3, 2).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(5 * LOOK_AFTER, looked_again);
    in_time.await.unwrap();
    charge(two, &acme, 3, 1).await.unwrap_err();
    assert!(bench.doubted().await.is_empty());
    assert_eq!(used(&two.bucket).await, 3);
}

#[tokio::test]
async fn what_was_stored_though_its_answer_was_lost_stays_charged() {
    let bench = Bench::start().await;
    let (one, acme) = (&bench.one, account("acme", "prod"));
    let first = attempt("k", 1);
    in_doubt(one, 3, 3, &first).await;
    bench.store(&first).await;
    // Not named so far: it is at the first look.
    for _ in 0..2 {
        charge(one, &acme, 3, 1).await.unwrap_err();
        assert!(bench.doubted().await.is_empty());
    }
    assert_eq!(used(&one.bucket).await, 3);
}

#[tokio::test]
async fn what_is_not_in_the_log_stays_charged_for_it_may_come_yet() {
    let bench = Bench::start().await;
    let (one, acme) = (&bench.one, account("acme", "prod"));
    in_doubt(one, 3, 3, &attempt("k", 1)).await;
    for _ in 0..2 {
        charge(one, &acme, 3, 1).await.unwrap_err();
    }
    assert_eq!(bench.doubted().await.len(), 1);
}

#[tokio::test]
async fn a_repetition_goes_on_under_the_first_charge_where_the_day_has_no_more() {
    let bench = Bench::start().await;
    let (two, acme) = (&bench.two, account("acme", "prod"));
    let (first, again) = (attempt("k", 1), attempt("k", 2));
    in_doubt(&bench.one, 3, 3, &first).await;
    bench.one.put_back(Duration::ZERO).await;
    charge(two, &acme, 3, 3).await.unwrap_err();
    let join = async |ask, attempt: &Submitted| {
        let attempt = Attempt::of(attempt);
        two.join(&acme, images(ask), &attempt).await.unwrap()
    };
    assert!(!join(3, &attempt("other", 3)).await);
    assert!(!join(4, &again).await, "it was charged less");
    assert!(join(3, &again).await);
    // As when its answer is lost, too.
    assert!(join(3, &attempt("k", 3)).await);
    bench.store(&again).await;
    charge(two, &acme, 3, 1).await.unwrap_err();
    assert!(bench.doubted().await.is_empty());
    assert_eq!(used(&two.bucket).await, 3);
}

#[tokio::test]
async fn of_two_who_settle_a_doubt_one_gives_back() {
    let bench = Bench::start().await;
    let acme = account("acme", "prod");
    in_doubt(&bench.one, 4, 2, &attempt("k", 1)).await;
    bench.one.put_back(Duration::ZERO).await;
    charge(&bench.two, &acme, 4, 2).await.unwrap();
    bench.store(&attempt("k", 2)).await;
    let (here, there) = tokio::join!(
        charge(&bench.one, &acme, 4, 2),
        charge(&bench.two, &acme, 4, 2)
    );
    assert!(here.is_ok() != there.is_ok());
    assert_eq!(used(&bench.two.bucket).await, 4);
}

#[tokio::test]
async fn what_another_gave_back_since_the_day_was_read_is_charged_and_not_refused() {
    let bench = Bench::start().await;
    let (one, two, acme) = (&bench.one, &bench.two, account("acme", "prod"));
    in_doubt(one, 4, 2, &attempt("k", 1)).await;
    one.put_back(Duration::ZERO).await;
    charge(two, &acme, 4, 2).await.unwrap();
    let full = stored(&two.bucket).await;
    bench.store(&attempt("k", 2)).await;
    charge(two, &acme, 4, 1).await.unwrap();
    assert!(bench.doubted().await.is_empty());

    let held = one.account(&acme);
    let settle = async |read: Entry<Day>| {
        let read = (read.value.used, read.revision);
        one.settle(&acme, &held, NOON / DAY, read).await.unwrap()
    };
    assert!(settle(full).await);
    assert!(!settle(stored(&two.bucket).await).await, "that is all");
}

#[test]
fn after_a_look_in_vain_there_is_none_for_a_moment_unless_something_was_written() {
    let (doubts, _) = pending();
    let now = Instant::now();
    assert!(!doubts.is_in_vain(5, now));
    doubts.note_in_vain(5, now);
    let soon = now + LOOK_AFTER / 2;
    assert!(doubts.is_in_vain(5, soon) && !doubts.is_in_vain(6, soon));
    assert!(!doubts.is_in_vain(5, now + LOOK_AFTER));
}

#[tokio::test]
async fn only_what_would_have_the_same_id_again_and_of_which_nothing_is_heard_is_in_doubt() {
    let (_server, meter) = place().await;
    let acme = account("acme", "prod");
    let taken = async |attempt: Option<Attempt>| {
        let charged = meter.charge(&acme, limit(10), images(1)).await;
        InDoubt::new(Allowed {
            place: None,
            charge: Some(charged.unwrap()),
            attempt,
        })
    };
    let attempt = Attempt::of(&attempt("k", 1));
    drop(taken(None).await);
    taken(Some(attempt.clone())).await.made();
    taken(Some(attempt.clone())).await.not_made();
    let held = meter.account(&acme);
    assert!(!held.doubts.any());
    drop(taken(Some(attempt.clone())).await);
    let tasks: Vec<Attempt> = (held.doubts.pending().iter())
        .map(|one| one.attempt.clone())
        .collect();
    assert_eq!(tasks, [attempt]);
    meter.put_back(Duration::ZERO).await;
    assert_eq!(used(&meter.bucket).await, 3);
}

#[tokio::test]
async fn what_is_in_doubt_is_named_at_once_while_the_service_runs() {
    let (_server, meter) = place().await;
    let meter = Arc::new(meter);
    let service = lifecycle::Service::new("test");
    meter.clone().keep_up(&service);
    in_doubt(&meter, 3, 1, &attempt("k", 1)).await;
    let named = async {
        while stored(&meter.bucket).await.value.doubts.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::super::IDLE / 2, named)
        .await
        .unwrap();
    drop(meter);
    assert!(service.stop(Duration::from_secs(10)).await);
}

fn pending() -> (Doubts, Attempt) {
    let doubts = Doubts::new(Arc::default());
    let attempt = Attempt::of(&attempt("k", 1));
    doubts.add(1, attempt.clone(), images(1));
    (doubts, attempt)
}

#[test]
fn a_name_whose_answer_was_lost_is_written_in_place_of_the_same_revision_or_not_at_all() {
    let (doubts, attempt) = pending();
    assert_eq!(doubts.name_in(&mut Day::default(), 5).all, 1);
    let mut again = Day::default();
    let batch = doubts.name_in(&mut again, 5);
    assert_eq!((batch.all, batch.tried), (1, 1));
    assert!(again.doubts[0].is_of(&attempt));
    // Whoever wrote since may have found it named, and settled it.
    assert_eq!(doubts.name_in(&mut Day::default(), 6).all, 0);
    assert!(!doubts.any());
}

#[test]
fn a_name_that_was_refused_is_written_in_place_of_the_next_revision() {
    let (doubts, _) = pending();
    let batch = doubts.name_in(&mut Day::default(), 5);
    doubts.refused(&batch);
    let mut day = Day::default();
    assert_eq!(doubts.name_in(&mut day, 6).all, 1);
    // Once it is found there it waits no longer.
    assert_eq!(doubts.name_in(&mut day, 7).all, 0);
    assert!(!doubts.any());
}

#[test]
fn a_record_names_no_more_than_it_may_and_the_rest_waits() {
    let (doubts, attempt) = pending();
    for number in 0..2 * MAX_NAMED {
        let task = number.to_string();
        doubts.add(1, Attempt { task, at: 1 }, images(1));
    }
    let mut day = Day::default();
    day.doubts.push(Doubt {
        task: "another".to_owned(),
        charged: images(1),
        at: vec![attempt.at],
    });
    let batch = doubts.name_in(&mut day, 5);
    assert_eq!((day.doubts.len(), batch.all), (MAX_NAMED, MAX_NAMED - 1));
    doubts.named(&batch);
    assert_eq!(doubts.pending().len(), 1);
    doubts.turn_to(2);
    assert!(!doubts.any());
}
