//! What the log keeps for the audit chain, and for how long.

use std::time::Duration;

use task_log::TaskRef;

use crate::aged::{ended, figure, garble, grow_older_than, is_given_up};
use crate::support::{Platform, stop, submitted, until};

/// The log keeps little for long.
const KEPT: (&str, &str) = ("streams.task_retention", "2s");
/// There is no room for a single block of records.
const NO_ROOM: [(&str, &str); 2] = [("audit.file_size", "1KiB"), ("audit.max_size", "2KiB")];

/// Tasks that have ended, and are older than the log keeps them.
async fn old(platform: &Platform) -> Vec<TaskRef> {
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(ended(platform).await);
    }
    grow_older_than(platform, Duration::from_secs(4)).await;
    tasks
}

async fn until_gone(platform: &Platform, tasks: &[TaskRef]) {
    for task in tasks {
        until("the log has let go of it", async || {
            !platform.log.is_there(task.task).await.unwrap()
        })
        .await;
    }
}

/// The first block of the chain, when it is there.
async fn first_block(platform: &Platform) -> String {
    let blocks = platform.broker.log("AUDIT");
    let block = async || blocks.at("inkstone.audit.block.1").await.unwrap();
    until("there is a block", async || block().await.is_some()).await;
    String::from_utf8(block().await.unwrap().payload.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_what_has_no_room_in_the_chain_and_lets_go_of_it_when_it_is_recorded() {
    let platform = Platform::start().await;
    let tasks = old(&platform).await;
    let admin = format!("127.0.0.1:{}", nats_server::free_port().unwrap());
    let listen = ("process.admin_listen", admin.as_str());
    let settings = [KEPT, NO_ROOM[0], NO_ROOM[1], listen];
    let orchestrator = platform.orchestrator(&settings).await;
    let held = "inkstone_orchestrator_audit_holds_log_seconds";
    // It has looked several times, and not only just after it began.
    until("it is told that the log is held", async || {
        figure(&admin, held).is_some_and(|seconds| seconds > 6.0)
    })
    .await;
    for task in &tasks {
        assert!(platform.log.is_there(task.task).await.unwrap());
    }
    stop(orchestrator).await;
    let orchestrator = platform.orchestrator(&[KEPT]).await;
    until_gone(&platform, &tasks).await;
    let block = first_block(&platform).await;
    assert_eq!(block.matches("\"event\":\"submitted\"").count(), 20);
    assert!(!block.contains("\"event\":\"gap\""), "{block}");
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_too_long_goes_and_the_chain_tells_of_it_when_it_has_room() {
    let platform = Platform::start().await;
    let tasks = old(&platform).await;
    let settings = [KEPT, NO_ROOM[0], NO_ROOM[1], ("audit.hold", "1s")];
    let orchestrator = platform.orchestrator(&settings).await;
    until_gone(&platform, &tasks).await;
    stop(orchestrator).await;
    let last = platform.log.last_sequence().await.unwrap();
    let admin = format!("127.0.0.1:{}", nats_server::free_port().unwrap());
    let settings = [KEPT, ("process.admin_listen", admin.as_str())];
    let orchestrator = platform.orchestrator(&settings).await;
    let block = first_block(&platform).await;
    let gap = format!("\"event\":\"gap\",\"from\":1,\"to\":{last},\"why\":\"expired\"");
    assert!(block.contains(&gap), "{block}");
    until("it is counted", async || {
        figure(&admin, "inkstone_orchestrator_audit_gaps_total") == Some(1.0)
    })
    .await;
    stop(orchestrator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_ends_by_its_age_though_nothing_was_recorded_after_its_submission()
 {
    let platform = Platform::start().await;
    let task = platform.submit(&submitted("acme", "1")).await;
    garble(&platform, &task).await;
    let kept = ("streams.task_retention", "20s");
    let orchestrator = platform.orchestrator(&[kept]).await;
    until("it is handed over", async || {
        platform.out().await.len() == 1
    })
    .await;
    // Nobody comes to it from there.
    let work = platform.broker.queue("WORK");
    assert_eq!(work.keep_last("inkstone.work.>", 0).await.unwrap(), 1);
    is_given_up(&platform, &task).await;
    stop(orchestrator).await;
}
