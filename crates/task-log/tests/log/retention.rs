//! What the log lets go of.

use std::time::{Duration, SystemTime};

use contract::task::State;
use task_log::{Cursor, Held, LetGo, Queue, TaskLog, TaskRef, Touch};

use crate::support::{Bench, bench, cancelled, scratch_log, submit_one, tenant};

const ALL: u64 = u64::MAX;

async fn known(log: &TaskLog, tasks: &[TaskRef; 3]) -> [bool; 3] {
    let mut known = [false; 3];
    for (known, task) in known.iter_mut().zip(tasks) {
        *known = log.read(&tenant(), task.task).await.unwrap().is_some();
    }
    known
}

async fn in_an_hour(log: &TaskLog) -> SystemTime {
    log.time().await.unwrap() + Duration::from_secs(3600)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_goes_up_to_the_first_task_that_has_not_ended() {
    let (_server, log) = scratch_log().await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(submit_one(&log).await);
    }
    let tasks: [TaskRef; 3] = tasks.try_into().unwrap();
    let queue = Queue {
        lane: tasks[0].lane.clone(),
        tenant: tasks[0].tenant.clone(),
    };
    let backlog = log.backlog().await.unwrap();
    backlog.put(&queue.key(), &Touch {}).await.unwrap();
    for ended in [0, 2] {
        log.end(&tasks[ended], &cancelled()).await.unwrap();
    }
    let retention = log.retention().await.unwrap();
    let long_ago = log.time().await.unwrap() - Duration::from_secs(3600);
    assert_eq!(retention.let_go(long_ago, ALL).await.unwrap(), LetGo::All);
    assert_eq!(known(&log, &tasks).await, [true; 3], "nothing is so old");

    let open = log.read(&tenant(), tasks[1].task).await.unwrap().unwrap();
    let went = retention.let_go(in_an_hour(&log).await, ALL).await.unwrap();
    assert_eq!(went, LetGo::UpTo(open.sequence));
    assert_eq!(known(&log, &tasks).await, [false, true, true]);

    log.end(&tasks[1], &cancelled()).await.unwrap();
    let went = retention.let_go(in_an_hour(&log).await, ALL).await.unwrap();
    assert_eq!(went, LetGo::All);
    assert_eq!(known(&log, &tasks).await, [false; 3]);
    let next = submit_one(&log).await;
    assert!(log.read(&tenant(), next.task).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_a_turn_removes_goes_in_several_up_to_the_first_task_that_has_not_ended()
{
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    for _ in 0..20 {
        let task = submit_one(&log).await;
        log.end(&task, &cancelled()).await.unwrap();
    }
    let open = submit_one(&log).await;
    announce(&log, &open).await;
    let retention = log.retention().await.unwrap().in_stretches_of(1);
    let later = in_an_hour(&log).await;
    let tasks = broker.log("TASKS");
    for (went, first) in [
        (LetGo::More(17), 17),
        (LetGo::More(33), 33),
        (LetGo::UpTo(41), 41),
        (LetGo::UpTo(41), 41),
    ] {
        assert_eq!(retention.let_go(later, ALL).await.unwrap(), went);
        assert_eq!(tasks.extent().await.unwrap().first, first);
    }
    assert!(log.is_there(open.task).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_stay_behind_a_bound_is_not_told_of_as_more_that_may_go() {
    let (_server, log) = scratch_log().await;
    for _ in 0..20 {
        let task = submit_one(&log).await;
        log.end(&task, &cancelled()).await.unwrap();
    }
    let retention = log.retention().await.unwrap().in_stretches_of(1);
    let later = in_an_hour(&log).await;
    for went in [LetGo::More(17), LetGo::UpTo(20), LetGo::UpTo(20)] {
        assert_eq!(retention.let_go(later, 20).await.unwrap(), went);
    }
    // Whoever has removed more than one knows may go.
    assert_eq!(retention.let_go(later, 5).await.unwrap(), LetGo::UpTo(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cursor_says_has_ended_is_not_looked_at_again() {
    let (_server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    let queue = Queue {
        lane: task.lane.clone(),
        tenant: task.tenant.clone(),
    };
    let backlog = log.backlog().await.unwrap();
    backlog.put(&queue.key(), &Touch {}).await.unwrap();
    let cursors = log.cursors().await.unwrap();
    let place = log.last_sequence().await.unwrap();
    let put = async |ended| {
        let cursor = Cursor::new(place + 1, ended);
        cursors.put(&queue.key(), &cursor).await.unwrap();
    };
    let retention = log.retention().await.unwrap();
    // It was handed over, and has not ended.
    put(place).await;
    let went = retention.let_go(in_an_hour(&log).await, ALL).await.unwrap();
    assert_eq!(went, LetGo::UpTo(place));
    put(place + 1).await;
    let went = retention.let_go(in_an_hour(&log).await, ALL).await.unwrap();
    assert_eq!(went, LetGo::All);
    assert!(log.read(&tenant(), task.task).await.unwrap().is_none());
}

async fn announce(log: &TaskLog, task: &TaskRef) {
    let queue = Queue {
        lane: task.lane.clone(),
        tenant: task.tenant.clone(),
    };
    let backlog = log.backlog().await.unwrap();
    backlog.put(&queue.key(), &Touch {}).await.unwrap();
}

async fn place(log: &TaskLog, task: &TaskRef) -> u64 {
    let record = log.read(&tenant(), task.task).await.unwrap();
    record.unwrap().sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_from_the_bound_on_however_old_it_is_and_whether_or_not_it_has_ended() {
    let (_server, log) = scratch_log().await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let task = submit_one(&log).await;
        log.end(&task, &cancelled()).await.unwrap();
        tasks.push(task);
    }
    let tasks: [TaskRef; 3] = tasks.try_into().unwrap();
    announce(&log, &tasks[0]).await;
    let bound = place(&log, &tasks[1]).await;
    let retention = log.retention().await.unwrap();
    let later = in_an_hour(&log).await;
    for bound in [0, 1] {
        let went = retention.let_go(later, bound).await.unwrap();
        assert_eq!(went, LetGo::UpTo(bound));
        assert_eq!(known(&log, &tasks).await, [true; 3]);
    }
    let went = retention.let_go(later, bound).await.unwrap();
    assert_eq!(went, LetGo::UpTo(bound));
    assert_eq!(known(&log, &tasks).await, [false, true, true]);
    assert_eq!(retention.held(later).await.unwrap(), None, "all have ended");
    let went = retention.let_go(later, ALL).await.unwrap();
    assert_eq!(went, LetGo::All);
    assert_eq!(known(&log, &tasks).await, [false; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_a_lagging_replica_does_not_know_keeps_its_tasks() {
    let Bench { server, log, .. } = bench().await;
    // All that the replica has heard of.
    let other = Queue {
        lane: "standard-hd".parse().unwrap(),
        tenant: tenant(),
    };
    let backlog = log.backlog().await.unwrap();
    backlog.put(&other.key(), &Touch {}).await.unwrap();
    let task = submit_one(&log).await;
    announce(&log, &task).await;
    let place = place(&log, &task).await;
    let retention = log.retention().await.unwrap();
    let later = in_an_hour(&log).await;
    let heard = format!("$KV.BACKLOG.{other}");
    server.lag("KV_BACKLOG", &heard).unwrap();
    let seen = backlog.written_since(0).await.unwrap();
    assert_eq!(seen.len(), 1, "it lags");
    let held = Held {
        place,
        task: Some(task.clone()),
    };
    assert_eq!(retention.held(later).await.unwrap(), Some(held));
    let went = retention.let_go(later, ALL).await.unwrap();
    assert_eq!(went, LetGo::UpTo(place));
    log.end(&task, &cancelled()).await.unwrap();
    let went = retention.let_go(later, ALL).await.unwrap();
    assert_eq!(went, LetGo::All);
    assert!(!log.is_there(task.task).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_of_what_ended_long_ago_behind_a_task_that_has_not_ended() {
    let (_server, log) = scratch_log().await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(submit_one(&log).await);
    }
    let tasks: [TaskRef; 3] = tasks.try_into().unwrap();
    announce(&log, &tasks[0]).await;
    log.set_state(&tasks[1], &State::default()).await.unwrap();
    log.end(&tasks[1], &cancelled()).await.unwrap();
    let open = place(&log, &tasks[0]).await;
    let retention = log.retention().await.unwrap();
    let long_ago = log.time().await.unwrap() - Duration::from_secs(3600);
    assert_eq!(retention.make_room(long_ago, open, ALL).await.unwrap(), 0);
    assert_eq!(known(&log, &tasks).await, [true; 3]);
    let later = in_an_hour(&log).await;
    let went = retention.let_go(later, ALL).await.unwrap();
    assert_eq!(went, LetGo::UpTo(open));
    let end = log.last_sequence().await.unwrap();
    let bounded = retention.make_room(later, open, end).await.unwrap();
    assert_eq!(bounded, 0, "it lies at the bound");
    assert_eq!(retention.make_room(later, open, ALL).await.unwrap(), 1);
    assert_eq!(known(&log, &tasks).await, [true, false, true]);
    assert_eq!(log.done(&tasks[1]).await.unwrap(), None, "nothing is left");
    assert_eq!(retention.make_room(later, open, ALL).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_was_being_made_when_its_maker_died_is_made_to_the_end() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let open = submit_one(&log).await;
    let task = submit_one(&log).await;
    log.set_state(&task, &State::default()).await.unwrap();
    log.end(&task, &cancelled()).await.unwrap();
    let tasks = broker.log("TASKS");
    let left = async || {
        let filter = format!("inkstone.task.*.*.{}.*", task.task);
        tasks.last_of_each(&filter).await.unwrap().len()
    };
    // Its submission goes first.
    let submission = place(&log, &task).await;
    assert!(tasks.remove(submission).await.unwrap());
    assert_eq!(left().await, 2);
    let retention = log.retention().await.unwrap();
    let (later, from) = (in_an_hour(&log).await, place(&log, &open).await);
    assert_eq!(retention.make_room(later, from, ALL).await.unwrap(), 1);
    assert_eq!(left().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_submission_a_lagging_replica_does_not_know_goes_whole() {
    let Bench { server, log, .. } = bench().await;
    let open = submit_one(&log).await;
    let task = submit_one(&log).await;
    log.end(&task, &cancelled()).await.unwrap();
    let from = place(&log, &open).await;
    let retention = log.retention().await.unwrap();
    server.lag("TASKS", "inkstone.task.*.*.*.done").unwrap();
    let later = in_an_hour(&log).await;
    assert_eq!(retention.make_room(later, from, ALL).await.unwrap(), 1);
    assert!(!log.is_there(task.task).await.unwrap());
    assert!(log.is_there(open.task).await.unwrap());
}
