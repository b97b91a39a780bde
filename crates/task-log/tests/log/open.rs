//! Since when there are tasks that have not ended.

use std::time::{Duration, SystemTime};

use contract::{Lane, TaskId};
use task_log::{Ended, TaskLog, TaskRef};

use crate::{Bench, bench, cancelled, submitted};

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

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_open_task_is_known_while_it_waits_and_while_it_is_worked_on() {
    let Bench {
        server: _server,
        log,
        ..
    } = bench().await;
    let lanes: [Lane; 2] = ["standard-image", "standard-hd"].map(|lane| lane.parse().unwrap());
    let wait = Duration::from_secs(30);
    let heads = [
        log.submissions(&lanes[0], wait).await.unwrap(),
        log.submissions(&lanes[1], wait).await.unwrap(),
    ];
    assert_eq!(log.open_since(&lanes).await.unwrap(), None);
    let first = submit(&log, &lanes[0], 100).await;
    let second = submit(&log, &lanes[1], 200).await;
    assert_eq!(log.open_since(&lanes).await.unwrap(), at(100));
    // In the workers' queue, and out of its lane.
    log.dispatch(&first, 0, 1).await.unwrap();
    for head in heads[0].pull(4).await.unwrap() {
        head.ack().await.unwrap();
    }
    assert_eq!(log.open_since(&lanes).await.unwrap(), at(100));
    // Ended, with its dispatch still there.
    let ended = log.end(&TaskRef::of(&first).unwrap(), &cancelled()).await;
    assert_eq!(ended.unwrap(), Ended::First);
    assert_eq!(log.open_since(&lanes).await.unwrap(), at(200));
    log.end(&TaskRef::of(&second).unwrap(), &cancelled())
        .await
        .unwrap();
    for head in heads[1].pull(4).await.unwrap() {
        head.ack().await.unwrap();
    }
    assert_eq!(log.open_since(&lanes).await.unwrap(), None);
}
