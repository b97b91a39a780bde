//! Since when there are tasks that have not ended.

use std::time::{Duration, SystemTime};

use contract::{Lane, TaskId};
use task_log::{Cursor, Ended, Queue, TaskLog, TaskRef, Touch};

use crate::support::{Bench, bench, cancelled, scratch_log, submitted};

fn at(seconds: u64) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

async fn submit(log: &TaskLog, lane: &Lane, seconds: i64) -> contract::task::Submitted {
    let mut event = submitted(TaskId::random());
    event.lane = lane.to_string();
    let mut time = contract::now();
    (time.seconds, time.nanos) = (seconds, 0);
    event.at = Some(time);
    log.submit(&event).await.unwrap();
    event
}

async fn announce(log: &TaskLog, event: &contract::task::Submitted) -> Queue {
    let task = TaskRef::of(event).unwrap();
    let queue = Queue {
        lane: task.lane,
        tenant: task.tenant,
    };
    let backlog = log.backlog().await.unwrap();
    backlog.put(&queue.key(), &Touch {}).await.unwrap();
    queue
}

/// Everything that lies in the queue now was handed over.
async fn pass(log: &TaskLog, queue: &Queue) {
    let sequence = log.last_sequence().await.unwrap() + 1;
    let cursors = log.cursors().await.unwrap();
    let stored = cursors
        .put(&queue.key(), &Cursor::new(sequence, sequence))
        .await;
    stored.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_open_task_is_known_while_it_waits_and_while_it_is_worked_on() {
    let (_server, log) = scratch_log().await;
    let lanes: [Lane; 2] = ["standard-image", "standard-hd"].map(|lane| lane.parse().unwrap());
    assert_eq!(log.open_since().await.unwrap(), None);
    let first = submit(&log, &lanes[0], 100).await;
    let second = submit(&log, &lanes[1], 200).await;
    let queues = [announce(&log, &first).await, announce(&log, &second).await];
    assert_eq!(log.open_since().await.unwrap(), at(100));
    // In the workers' queue, and out of its own.
    log.dispatch(&first, 0, 1).await.unwrap();
    pass(&log, &queues[0]).await;
    assert_eq!(log.open_since().await.unwrap(), at(100));
    // Ended, with its dispatch still there.
    let ended = log.end(&TaskRef::of(&first).unwrap(), &cancelled()).await;
    assert_eq!(ended.unwrap(), Ended::First);
    assert_eq!(log.open_since().await.unwrap(), at(200));
    log.end(&TaskRef::of(&second).unwrap(), &cancelled())
        .await
        .unwrap();
    pass(&log, &queues[1]).await;
    assert_eq!(log.open_since().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_left_waiting_is_in_queues_that_are_known() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let lane: Lane = "standard-image".parse().unwrap();
    let wait = Duration::from_secs(30);
    let tasks = broker.queue("TASKS");
    let filter = "inkstone.task.*.standard-image.*.submitted";
    let name = "dispatch_standard-image";
    let heads = tasks.puller(name, filter, wait, 64).await.unwrap();
    let first = submit(&log, &lane, 100).await;
    for head in heads.pull(4).await.unwrap() {
        head.ack().await.unwrap();
    }
    submit(&log, &lane, 200).await;
    submit(&log, &lane, 300).await;
    log.adopt_older_backlog().await.unwrap();
    let queues = log.backlog().await.unwrap().written_since(0).await.unwrap();
    let queue = Queue::of_key(&queues[0].key).unwrap();
    assert_eq!(queue.tenant.as_str(), first.tenant);
    assert_eq!(queues.len(), 1);
    assert_eq!(log.open_since().await.unwrap(), at(200));
    let left = log.submissions(&queue, 1, 10).await.unwrap();
    assert_eq!(left.events.len(), 3);
    let consumers = tasks.consumers().await.unwrap();
    assert!(consumers.iter().all(|(other, _)| other != name));
    // Once more changes nothing.
    log.adopt_older_backlog().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_dispatch_is_lost_is_open_until_it_ends() {
    let (_server, log) = scratch_log().await;
    let lane: Lane = "standard-image".parse().unwrap();
    let ended = submit(&log, &lane, 100).await;
    let lost = submit(&log, &lane, 200).await;
    let queue = announce(&log, &ended).await;
    let end = async |event: &contract::task::Submitted| {
        let ended = log.end(&TaskRef::of(event).unwrap(), &cancelled()).await;
        assert_eq!(ended.unwrap(), Ended::First);
    };
    end(&ended).await;
    // Both were handed over, and nothing is in WORK.
    let cursor = Cursor::new(log.last_sequence().await.unwrap() + 1, 1);
    let cursors = log.cursors().await.unwrap();
    cursors.put(&queue.key(), &cursor).await.unwrap();
    assert_eq!(log.open_since().await.unwrap(), at(200));
    end(&lost).await;
    assert_eq!(log.open_since().await.unwrap(), None);
}
