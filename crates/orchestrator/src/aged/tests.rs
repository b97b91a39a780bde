//! What is old, and whose end was told.

use contract::task::Submitted;
use task_log::TaskRef;

use super::*;
use crate::sweeps::tests::{begun, expiring, place};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// How long an end stays here.
const STAYS_FOR: Duration = Duration::from_secs(5);

/// One of several that look at a log which keeps tasks for an hour.
async fn aged(log: &TaskLog) -> Aged {
    Aged {
        log: log.clone(),
        keeper: log.retention().await.unwrap(),
        hold: None,
        kept: Kept::new(HOUR),
        retention: HOUR,
        full_at: u64::MAX,
        every: HOUR,
        told_within: STAYS_FOR,
        told: Mutex::new(Told {
            all_from: Instant::now(),
            ended: VecDeque::new(),
            said: None,
        }),
        under_way: Mutex::new(None),
    }
}

/// A task that was submitted `at`.
async fn submit(log: &TaskLog, at: SystemTime) -> TaskRef {
    let submitted = Submitted {
        task_id: TaskId::random().to_string(),
        tenant: "acme".to_owned(),
        lane: "standard-image".to_owned(),
        at: Some(at.into()),
        ..Submitted::default()
    };
    log.submit(&submitted).await.unwrap();
    TaskRef::of(&submitted).unwrap()
}

async fn look(aged: &Aged, task: &TaskRef, now: SystemTime) -> Looked {
    let failed = Failed::default();
    let looked = aged.look_at_readable(&task.tenant, task.task, now, &failed);
    looked.await.unwrap()
}

#[tokio::test]
async fn a_task_that_has_begun_goes_on_though_a_replica_has_not_heard_of_it() {
    let (log, _storage, (server, _folder)) = place().await;
    let at = log.time().await.unwrap();
    let (drawn, waiting) = (submit(&log, at).await, submit(&log, at).await);
    log.set_state(&drawn, &begun(at)).await.unwrap();
    let aged = aged(&log).await;
    server
        .lag("TASKS", "inkstone.task.*.*.*.submitted")
        .unwrap();
    // Too late to begin, and not too late to end.
    let later = at + HOUR * 37 / 40;
    assert!(matches!(look(&aged, &drawn, later).await, Looked::Stays));
    let waited_out = look(&aged, &waiting, later).await;
    assert!(matches!(waited_out, Looked::Ended(2)));
    let done = async |task: &TaskRef| {
        let record = log.read_at_leader(&task.tenant, task.task).await;
        record.unwrap().unwrap().done
    };
    assert_eq!(done(&drawn).await, None);
    assert!(done(&waiting).await.is_some());
}

#[tokio::test]
async fn what_another_has_ended_just_now_stays_until_it_was_told() {
    let (log, _storage, (server, _folder)) = place().await;
    let at = log.time().await.unwrap();
    let task = submit(&log, at).await;
    let (one, other) = (aged(&log).await, aged(&log).await);
    let later = at + HOUR;
    assert!(matches!(look(&one, &task, later).await, Looked::Ended(1)));
    let soon = later + SECOND;
    assert!(matches!(look(&other, &task, soon).await, Looked::Ended(1)));
    let told = later + STAYS_FOR;
    assert!(matches!(look(&other, &task, told).await, Looked::Stays));
    // Also where the leader alone knows of its end.
    server
        .lag("TASKS", "inkstone.task.*.*.*.submitted")
        .unwrap();
    assert!(matches!(look(&other, &task, soon).await, Looked::Ended(1)));
    assert!(matches!(look(&other, &task, told).await, Looked::Stays));
}

#[test]
fn an_end_is_recent_for_as_long_as_it_may_take_to_tell_it() {
    let at = UNIX_EPOCH + HOUR;
    let done = Done {
        at: Some(at.into()),
        ..Done::default()
    };
    let is_recent = |now| is_recent(&done, now, STAYS_FOR);
    assert!(is_recent(at) && is_recent(at + 4 * SECOND));
    // It was written after the time was asked for.
    assert!(is_recent(at - SECOND));
    assert!(!is_recent(at + STAYS_FOR) && !is_recent(at - STAYS_FOR));
    let of_no_time = Done::default();
    assert!(!super::is_recent(&of_no_time, at, STAYS_FOR));
}

#[test]
fn what_has_ended_stays_until_it_was_told_and_what_lies_before_it_goes() {
    let start = Instant::now();
    let within = 5 * SECOND;
    let mut told = Told {
        all_from: start + within,
        ended: VecDeque::new(),
        said: None,
    };
    told.note(9, start + SECOND);
    assert_eq!(told.before(start + 4 * SECOND, within), None, "a start");
    told.note(7, start + 4 * SECOND);
    told.note(30, start + 6 * SECOND);
    assert_eq!(told.before(start + 6 * SECOND, within), Some(7));
    assert_eq!(told.before(start + 10 * SECOND, within), Some(30));
    assert_eq!(told.before(start + 11 * SECOND, within), Some(u64::MAX));
}

#[test]
fn what_could_not_be_ended_keeps_what_lies_behind_it_and_what_was_not_read_keeps_all() {
    let error = || TaskLogError::Stopping;
    let swept = Swept::default();
    assert_eq!(swept.bound(u64::MAX), Some(u64::MAX));
    let swept = swept
        .note(Looked::NotEnded(12, Some(error())))
        .note(Looked::NotEnded(8, None))
        .note(Looked::Ended(3))
        .note(Looked::Stays);
    assert_eq!((swept.not_ended, swept.ended), (2, Some(3)));
    assert!(swept.error.is_some());
    assert_eq!(swept.bound(u64::MAX), Some(8));
    assert_eq!(swept.bound(5), Some(5));
    let swept = swept.note(Looked::NotRead(Some(error())));
    assert_eq!(swept.bound(u64::MAX), None);
}

#[tokio::test]
async fn a_turn_that_leaves_more_to_let_go_of_is_followed_by_another_at_once() {
    let (log, _storage, _kept) = place().await;
    let at = log.time().await.unwrap();
    for _ in 0..10 {
        let task = submit(&log, at).await;
        log.end(&task, &Done::default()).await.unwrap();
    }
    let last = submit(&log, at).await;
    log.end(&last, &Done::default()).await.unwrap();
    let mut aged = aged(&log).await;
    aged.retention = Duration::ZERO;
    aged.keeper = log.retention().await.unwrap().in_stretches_of(1);
    // 22 places, of which a turn takes 16.
    assert_eq!(aged.turn().await, Turn::GoesOn);
    assert!(log.is_there(last.task).await.unwrap());
    assert_eq!(aged.turn().await, Turn::Over);
    assert!(!log.is_there(last.task).await.unwrap());
}

#[tokio::test]
async fn what_is_in_work_is_looked_through_once_a_look_in_however_many_turns_the_log_lets_go() {
    let (log, _storage, _kept) = place().await;
    let at = log.time().await.unwrap();
    for _ in 0..10 {
        let task = submit(&log, at).await;
        log.end(&task, &Done::default()).await.unwrap();
    }
    // Ended just now and still in WORK: whoever looks through that notes it each time.
    let handed_over = expiring(at);
    log.submit(&handed_over).await.unwrap();
    let done = Done {
        at: Some(at.into()),
        ..Done::default()
    };
    let task = TaskRef::of(&handed_over).unwrap();
    log.end(&task, &done).await.unwrap();
    log.dispatch(&handed_over, 0, 1).await.unwrap();
    let mut aged = aged(&log).await;
    (aged.retention, aged.told_within) = (Duration::ZERO, HOUR);
    aged.keeper = log.retention().await.unwrap().in_stretches_of(1);
    let looks = |aged: &Aged| aged.told().ended.len();
    // 20 places, of which a turn takes 16, lie before it, and it stays.
    assert_eq!((aged.turn().await, looks(&aged)), (Turn::GoesOn, 1));
    assert_eq!((aged.turn().await, looks(&aged)), (Turn::Over, 1));
    assert_eq!((aged.turn().await, looks(&aged)), (Turn::Over, 2));
    assert!(log.is_there(task.task).await.unwrap());
}

#[tokio::test]
async fn a_look_that_goes_on_until_the_next_one_is_due_gives_way_to_it() {
    let (log, _storage, _kept) = place().await;
    let mut aged = aged(&log).await;
    let at = Instant::now();
    let note = |aged: &Aged| *aged.under_way() = Some(Look { at, bound: 7 });
    aged.every = 10 * SECOND;
    note(&aged);
    let look = aged.goes_on(at + 9 * SECOND).unwrap();
    assert_eq!(look.bound, 7);
    note(&aged);
    assert!(aged.goes_on(at + 10 * SECOND).is_none());
    assert!(aged.goes_on(at).is_none(), "it is forgotten");
}
