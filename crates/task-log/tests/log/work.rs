//! What is to be done: how it is queued, handed over, given back and read.

use std::time::{Duration, Instant};

use contract::TaskId;
use contract::task::{Dispatch, Phase, State, Submitted};
use messaging::{BrokerError, Puller};
use prost::Message as _;
use task_log::{Behind, Cursor, Handed, Handover, Missed, Queue, Record, TaskLog, TaskRef};

use crate::support::{Bench, bench, cancelled, scratch_log, submitted, tenant};

/// What workers of the model that all these tasks want pull from.
async fn work_of_the_model(log: &TaskLog, ack_wait: Duration) -> Puller {
    let (model, number) = ("demo".parse().unwrap(), "1".parse().unwrap());
    log.work_of(&model, &number, ack_wait).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatch_is_queued_once_and_comes_back_when_it_is_not_acknowledged() {
    let (_server, log) = scratch_log().await;
    let event = submitted(TaskId::random());
    assert_eq!(
        log.dispatch(&event, 0, 4).await.unwrap(),
        Handed::Dispatched
    );
    // By what it is known by, and by its subject.
    assert_eq!(log.dispatch(&event, 0, 4).await.unwrap(), Handed::Already);
    assert_eq!(log.dispatch(&event, 1, 4).await.unwrap(), Handed::Already);
    let version = ("demo".to_owned(), "1".to_owned());
    let work = log.work().await.unwrap();
    assert_eq!(work.by_version, [(version, 1)].into());
    assert_eq!(work.by_tenant, [(tenant(), 1)].into());
    let wait = Duration::from_secs(1);
    let work = work_of_the_model(&log, wait).await;
    let first = work.pull(4).await.unwrap();
    assert_eq!(first.len(), 1);
    drop(first);
    let second = work.pull(4).await.unwrap();
    assert_eq!(second[0].deliveries(), 2);
    assert_eq!(log.dispatch(&event, 2, 4).await.unwrap(), Handed::Already);
    second[0].ack().await.unwrap();
    assert!(log.work().await.unwrap().by_version.is_empty());
    assert_eq!(
        log.dispatch(&event, 3, 4).await.unwrap(),
        Handed::Dispatched
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_let_an_ack_wait_pass_knows_that_another_may_have_the_work_whatever_it_says_later() {
    let (_server, log) = scratch_log().await;
    let event = submitted(TaskId::random());
    log.dispatch(&event, 0, 1).await.unwrap();
    let work = work_of_the_model(&log, Duration::from_secs(2)).await;
    let mut first = work.pull(1).await.unwrap();
    let asleep = first.remove(0);
    assert!(!asleep.has_lapsed());
    let mut second = work.pull(1).await.unwrap();
    let awake = second.remove(0);
    assert_eq!(awake.deliveries(), 2);
    assert!(asleep.has_lapsed() && !awake.has_lapsed());
    asleep.still_working().await;
    assert!(asleep.has_lapsed());
    awake.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lay_unread_for_an_ack_wait_counts_as_what_another_may_have() {
    let (_server, log) = scratch_log().await;
    let work = work_of_the_model(&log, Duration::from_secs(2)).await;
    let mut standing = work.coming(1).await.unwrap();
    // As a process that is stopped with a pull outstanding: the message comes, and nobody reads it.
    let event = submitted(TaskId::random());
    log.dispatch(&event, 0, 1).await.unwrap();
    let mut other = work.pull(1).await.unwrap();
    let awake = other.remove(0);
    assert_eq!(awake.deliveries(), 2);
    let late = standing.next().await.unwrap().unwrap();
    assert_eq!(late.deliveries(), 1);
    assert!(late.has_lapsed() && !awake.has_lapsed());
    awake.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_at_once_comes_back_after_its_delay_and_not_after_the_ack_wait() {
    let (_server, log) = scratch_log().await;
    let mut left = 20;
    for _ in 0..left {
        log.dispatch(&submitted(TaskId::random()), 0, 1)
            .await
            .unwrap();
    }
    let wait = Duration::from_secs(600);
    let work = work_of_the_model(&log, wait).await;
    let began = Instant::now();
    while left > 0 {
        for delivery in work.pull(20).await.unwrap() {
            if delivery.deliveries() > 1 {
                delivery.ack().await.unwrap();
                left -= 1;
                continue;
            }
            let delay = Duration::from_millis(10);
            let given_back = delivery.heartbeat(delivery.give_back(delay)).await;
            given_back.unwrap();
        }
        assert!(began.elapsed() < wait / 10, "{left} did not come back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_no_acknowledgement_waits_in_line() {
    let Bench {
        mut server,
        broker,
        log,
    } = bench().await;
    let event = submitted(TaskId::random());
    log.dispatch(&event, 0, 1).await.unwrap();
    let wait = Duration::from_secs(600);
    let work = work_of_the_model(&log, wait).await;
    let taken = work.pull(1).await.unwrap();
    server.kill();
    // From when the client has noticed.
    while !matches!(broker.probe().await, Err(BrokerError::Unreachable { .. })) {}
    let refused = taken[0].ack_unconfirmed().await.unwrap_err();
    assert!(matches!(refused, BrokerError::Unreachable { .. }));
}

async fn handover(log: &TaskLog, event: &Submitted) -> Handover {
    let task = TaskRef::of(event).unwrap();
    let stored = log.read(&task.tenant, task.task).await.unwrap();
    Handover {
        task,
        model: event.model.clone(),
        version: event.model_version.clone(),
        weight: 1,
        submitted: event.encode_to_vec(),
        sequence: stored.map_or(0, |record| record.sequence),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatch_tells_what_the_log_holds_where_its_state_was_written_for_it() {
    let (_server, log) = scratch_log().await;
    let (new, known) = (submitted(TaskId::random()), submitted(TaskId::random()));
    for event in [&new, &known] {
        log.submit(event).await.unwrap();
    }
    let state = State {
        phase: Phase::Scheduled.into(),
        attempt: 1,
        ..State::default()
    };
    let task = TaskRef::of(&known).unwrap();
    log.set_state(&task, &state).await.unwrap();
    for event in [&new, &known] {
        let handed = log.hand_over(handover(&log, event).await).await.unwrap();
        assert_eq!(handed, Handed::Dispatched);
    }
    let wait = Duration::from_secs(30);
    let work = work_of_the_model(&log, wait).await;
    let (mut told, mut silent) = (0, 0);
    while told + silent < 2 {
        for delivery in work.pull(2).await.unwrap() {
            let dispatch = Dispatch::decode(delivery.payload().clone()).unwrap();
            let Dispatch {
                tenant,
                lane,
                task_id,
                ..
            } = &dispatch;
            let task = TaskRef::parse(tenant, lane, task_id).unwrap();
            let record = log.read(&task.tenant, task.task).await.unwrap().unwrap();
            let Some(tells) = Record::of_dispatch(&task, &dispatch) else {
                assert_eq!(record.submitted, known);
                silent += 1;
                continue;
            };
            // Where the submission lies, a dispatch does not tell.
            let sequence = tells.sequence;
            assert_eq!(tells, Record { sequence, ..record });
            assert_eq!(tells.submitted, new);
            told += 1;
        }
    }
    assert_eq!((told, silent), (1, 1));
    let task = TaskRef::of(&new).unwrap();
    assert_eq!(log.done(&task).await.unwrap(), None);
    log.end(&task, &cancelled()).await.unwrap();
    assert_eq!(log.done(&task).await.unwrap(), Some(cancelled()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ended_while_it_waited_is_not_handed_over() {
    let (_server, log) = scratch_log().await;
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    let to = handover(&log, &event).await;
    let task = to.task.clone();
    log.end(&task, &cancelled()).await.unwrap();
    assert_eq!(log.hand_over(to).await.unwrap(), Handed::Ended);
    let record = log.read(&task.tenant, task.task).await.unwrap().unwrap();
    assert_eq!(record.state, None);
    assert!(log.out().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_has_ended_since_it_was_told_of_is_not_taken_up() {
    let (_server, log) = scratch_log().await;
    let running = State {
        phase: Phase::Running.into(),
        attempt: 1,
        ..State::default()
    };
    let work = work_of_the_model(&log, Duration::from_secs(30)).await;
    for has_ended in [false, true] {
        let event = submitted(TaskId::random());
        log.submit(&event).await.unwrap();
        let to = handover(&log, &event).await;
        let task = to.task.clone();
        log.hand_over(to).await.unwrap();
        let pulled = work.pull(1).await.unwrap();
        let dispatch = Dispatch::decode(pulled[0].payload().clone()).unwrap();
        let told = Record::of_dispatch(&task, &dispatch).unwrap();
        assert_eq!(told.behind(), Behind::Last(told.state_sequence));
        let read = log.read(&task.tenant, task.task).await.unwrap().unwrap();
        assert_eq!(read.behind(), Behind::State(told.state_sequence));
        if has_ended {
            log.end(&task, &cancelled()).await.unwrap();
        }
        let taken_up = log.take_up(&task, &running, told.behind()).await.unwrap();
        assert_eq!(taken_up.is_some(), !has_ended);
        // An answer that was lost: it is found when it is written again.
        let again = log.take_up(&task, &running, told.behind()).await.unwrap();
        assert_eq!(again, taken_up);
        let second = State {
            attempt: 2,
            ..running.clone()
        };
        let second = log.take_up(&task, &second, told.behind()).await;
        assert_eq!(second.unwrap(), None, "somebody has it, or it is over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ended_while_it_waited_is_not_handed_over_though_a_replica_has_not_heard_of_it()
{
    let (server, log) = scratch_log().await;
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    let to = handover(&log, &event).await;
    log.end(&to.task, &cancelled()).await.unwrap();
    server
        .lag("TASKS", "inkstone.task.*.*.*.submitted")
        .unwrap();
    assert_eq!(log.hand_over(to).await.unwrap(), Handed::Ended);
    assert!(log.out().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn handing_a_task_over_overwrites_no_state_and_leaves_alone_what_has_ended() {
    let (_server, log) = scratch_log().await;
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    let to = handover(&log, &event).await;
    let task = to.task.clone();
    assert_eq!(log.hand_over(to.clone()).await.unwrap(), Handed::Dispatched);
    let running = State {
        phase: Phase::Running.into(),
        attempt: 1,
        ..State::default()
    };
    log.set_state(&task, &running).await.unwrap();
    assert_eq!(log.hand_over(to.clone()).await.unwrap(), Handed::Already);
    let record = log.read(&task.tenant, task.task).await.unwrap().unwrap();
    assert_eq!(record.state, Some(running));
    log.end(&task, &cancelled()).await.unwrap();
    assert_eq!(log.hand_over(to).await.unwrap(), Handed::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_dispatch_is_lost_is_handed_over_again_unless_it_has_ended() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    let to = handover(&log, &event).await;
    let task = to.task.clone();
    log.hand_over(to.clone()).await.unwrap();
    let again = async |though_running| {
        let again = log.hand_over_again(&task, 1, though_running).await;
        again.unwrap()
    };
    assert_eq!(again(false).await, Missed::There);
    let purge = async || {
        let work = broker.queue("WORK");
        work.keep_last("inkstone.work.>", 0).await.unwrap()
    };
    assert_eq!(purge().await, 1);
    // The broker remembers the id of the first.
    assert_eq!(log.hand_over(to).await.unwrap(), Handed::Already);
    assert_eq!(again(false).await, Missed::Dispatched);
    assert_eq!(purge().await, 1);
    let running = State {
        phase: Phase::Running.into(),
        attempt: 1,
        ..State::default()
    };
    log.set_state(&task, &running).await.unwrap();
    assert_eq!(again(false).await, Missed::Running);
    assert_eq!(again(true).await, Missed::Dispatched);
    let record = log.read(&task.tenant, task.task).await.unwrap().unwrap();
    assert_eq!(record.state, Some(running), "its state stays");
    assert_eq!(purge().await, 1);
    log.end(&task, &cancelled()).await.unwrap();
    assert_eq!(again(true).await, Missed::Over);
    let nobodys = handover(&log, &submitted(TaskId::random())).await.task;
    let again = log.hand_over_again(&nobodys, 1, true).await;
    assert_eq!(again.unwrap(), Missed::Over);
    assert_eq!(purge().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_in_turn_and_page_by_page_with_what_is_left_behind() {
    let (_server, log) = scratch_log().await;
    for number in 0..30 {
        let mut event = submitted(TaskId::random());
        if number % 3 == 0 {
            event.tenant = "other".to_owned();
        }
        log.submit(&event).await.unwrap();
    }
    let queue = Queue {
        lane: "standard-image".parse().unwrap(),
        tenant: tenant(),
    };
    let first = log.submissions(&queue, 1, 8).await.unwrap();
    assert_eq!((first.events.len(), first.behind), (8, 12));
    let next = first.events[7].sequence + 1;
    let mut reader = log.read_submissions(&queue, next).await.unwrap();
    let second = reader.read(8).await.unwrap();
    assert_eq!((second.events.len(), second.behind), (8, 4));
    let third = reader.read(8).await.unwrap();
    assert_eq!((third.events.len(), third.behind), (4, 0));
    let next = third.events[3].sequence + 1;
    assert_eq!(reader.next_sequence(), next);
    assert!(reader.read(8).await.unwrap().events.is_empty());
    let last = log.submissions(&queue, next, 8).await.unwrap();
    assert!(last.events.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_goes_when_nothing_of_its_queue_is_left_and_not_when_it_was_written_meanwhile() {
    let (_server, log) = scratch_log().await;
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    let there = Queue::of_key("standard-image.acme").unwrap();
    let gone = Queue::of_key("standard-image.other").unwrap();
    let cursors = log.cursors().await.unwrap();
    let cursor = |sequence| Cursor::new(sequence, sequence);
    cursors.create(&there.key(), &cursor(1)).await.unwrap();
    let first = cursors.create(&gone.key(), &cursor(7)).await.unwrap();
    let second = cursors.update(&gone.key(), &cursor(8), first).await;
    assert!(!cursors.forget(&gone.key(), first).await.unwrap());
    let found = cursors.get(&gone.key()).await.unwrap().unwrap();
    assert_eq!(found.revision, second.unwrap());
    assert_eq!(log.sweep_cursors().await.unwrap(), 1);
    assert_eq!(log.sweep_cursors().await.unwrap(), 0);
    assert!(cursors.get(&gone.key()).await.unwrap().is_none());
    let found = cursors.get(&there.key()).await.unwrap().unwrap();
    assert_eq!(found.value, cursor(1));
    // Nothing says that it was there; who has the queue makes its cursor again.
    assert_eq!(cursors.written_since(0).await.unwrap().len(), 1);
    cursors.create(&gone.key(), &cursor(9)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_is_not_handed_over_again_and_is_over_when_it_has_ended() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let event = submitted(TaskId::random());
    log.submit(&event).await.unwrap();
    let task = TaskRef::of(&event).unwrap();
    let found = async || log.unreadable(&task.tenant, task.task).await.unwrap();
    assert!(found().await.is_none(), "it can be read");
    let TaskRef {
        tenant,
        lane,
        task: id,
    } = &task;
    let state = format!("inkstone.task.{tenant}.{lane}.{id}.state");
    let garbled: &[u8] = b"\x7f";
    let tasks = broker.log("TASKS");
    tasks.put(&state, garbled.into()).await.unwrap();
    let error = log.hand_over_again(&task, 1, true).await.unwrap_err();
    assert!(error.is_unreadable(), "{error:?}");
    let record = found().await.unwrap();
    assert_eq!((record.subject, &record.payload[..]), (state, garbled));
    assert_eq!((&record.task, record.sequence), (&task, 1));
    let age = log
        .time()
        .await
        .unwrap()
        .duration_since(record.stored_at.unwrap());
    assert!(age.unwrap() < Duration::from_secs(60));
    log.end(&task, &cancelled()).await.unwrap();
    assert!(found().await.is_none(), "it has ended");
    let over = log.hand_over_again(&task, 1, true).await.unwrap();
    assert_eq!(over, Missed::Over);
}
