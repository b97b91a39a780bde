//! What callers say of a task that they have read.

use std::time::Duration;

use contract::v1::{Feedback, TaskPhase};
use task_log::{LetGo, Record, Submission, TaskLog, TaskRef};

use crate::support::{Bench, bench, cancelled, scratch_log, submit_one, submitted, tenant};

fn rated(rating: u32) -> Feedback {
    Feedback {
        rating,
        ..Feedback::default()
    }
}

async fn read(log: &TaskLog, task: &TaskRef) -> Record {
    log.read(&tenant(), task.task).await.unwrap().unwrap()
}

/// A task that has ended.
async fn ended(log: &TaskLog) -> TaskRef {
    let task = submit_one(log).await;
    log.end(&task, &cancelled()).await.unwrap();
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_words_on_a_task_the_last_one_counts() {
    let (_server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    for rating in [2, 5] {
        let record = read(&log, &task).await;
        let stored = log.set_feedback(&record, &rated(rating)).await;
        assert!(stored.unwrap());
    }
    let record = read(&log, &task).await;
    assert_eq!(record.view().feedback.unwrap().rating, 5);
    assert_eq!(record.phase(), TaskPhase::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_come_at_once_are_all_stored_and_the_last_one_counts() {
    const AT_ONCE: u32 = 4;
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = ended(&log).await;
    // All have read the same.
    let record = read(&log, &task).await;
    let words: Vec<Feedback> = (1..=AT_ONCE).map(rated).collect();
    let stored = words.iter().map(|word| log.set_feedback(&record, word));
    let stored = futures::future::try_join_all(stored).await.unwrap();
    assert!(stored.iter().all(|stored| *stored), "{stored:?}");
    let places = broker.log("TASKS").last_sequence().await.unwrap();
    assert_eq!(places, 2 + u64::from(AT_ONCE), "each has had its own");
    let kept = read(&log, &task).await;
    assert_eq!(kept.last_sequence, places);
    assert!(words.contains(kept.feedback.as_ref().unwrap()));
    // One that comes later than these has read no more than they.
    let last = rated(5);
    assert!(log.set_feedback(&record, &last).await.unwrap());
    assert_eq!(read(&log, &task).await.feedback, Some(last));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_on_a_task_whose_id_came_again_since_it_was_read_is_not_kept_as_one_on_the_new_task()
{
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = ended(&log).await;
    let was = read(&log, &task).await;
    let retention = log.retention().await.unwrap();
    let later = log.time().await.unwrap() + Duration::from_secs(3600);
    let went = retention.let_go(later, u64::MAX).await.unwrap();
    assert_eq!(went, LetGo::All);
    let say = async |of: &Record, rating| log.set_feedback(of, &rated(rating)).await.unwrap();
    assert!(!say(&was, 1).await, "it is gone");
    let tasks = broker.log("TASKS");
    let left = format!("inkstone.task.*.*.{}.*", task.task);
    assert!(tasks.last_of_each(&left).await.unwrap().is_empty());

    // The same again, to the last byte: what it is told by is its place.
    let again = log.submit(&submitted(task.task)).await.unwrap();
    assert_eq!(again, Submission::Accepted);
    assert!(!say(&was, 2).await, "it is another");
    log.end(&task, &cancelled()).await.unwrap();
    assert!(!say(&was, 3).await, "it is another that has ended");
    let is = read(&log, &task).await;
    assert_eq!(is.feedback, None);
    assert!(say(&is, 4).await);
    assert_eq!(read(&log, &task).await.feedback, Some(rated(4)));
}
