//! What the log lets go of.

use std::time::{Duration, SystemTime};

use task_log::{Cursor, LetGo, Queue, TaskLog, TaskRef, Touch};

use crate::lagging::Lagging;
use crate::support::{Bench, bench, cancelled, scratch_log, submit_one, tenant};

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
    assert_eq!(retention.let_go(long_ago).await.unwrap(), LetGo::All);
    assert_eq!(known(&log, &tasks).await, [true; 3], "nothing is so old");

    let open = log.read(&tenant(), tasks[1].task).await.unwrap().unwrap();
    let went = retention.let_go(in_an_hour(&log).await).await.unwrap();
    assert_eq!(went, LetGo::UpTo(open.sequence));
    assert_eq!(known(&log, &tasks).await, [false, true, true]);

    log.end(&tasks[1], &cancelled()).await.unwrap();
    let went = retention.let_go(in_an_hour(&log).await).await.unwrap();
    assert_eq!(went, LetGo::All);
    assert_eq!(known(&log, &tasks).await, [false; 3]);
    let next = submit_one(&log).await;
    assert!(log.read(&tenant(), next.task).await.unwrap().is_some());
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
    let went = retention.let_go(in_an_hour(&log).await).await.unwrap();
    assert_eq!(went, LetGo::UpTo(place));
    put(place + 1).await;
    let went = retention.let_go(in_an_hour(&log).await).await.unwrap();
    assert_eq!(went, LetGo::All);
    assert!(log.read(&tenant(), task.task).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_a_lagging_replica_does_not_know_keeps_its_tasks() {
    let Bench { server, log, .. } = bench().await;
    let task = submit_one(&log).await;
    let queue = Queue {
        lane: task.lane.clone(),
        tenant: task.tenant.clone(),
    };
    let backlog = log.backlog().await.unwrap();
    backlog.put(&queue.key(), &Touch {}).await.unwrap();
    let place = log.last_sequence().await.unwrap();
    let retention = log.retention().await.unwrap();
    let later = in_an_hour(&log).await;
    let lagging = Lagging::of(&server, "KV_BACKLOG").await;
    let looks = async {
        let went = retention.let_go(later).await.unwrap();
        assert_eq!(went, LetGo::UpTo(place));
        log.end(&task, &cancelled()).await.unwrap();
        let went = retention.let_go(later).await.unwrap();
        assert_eq!(went, LetGo::All);
    };
    tokio::select! {
        () = looks => {}
        () = lagging.answer() => {}
    }
    assert!(!log.is_there(task.task).await.unwrap());
}
