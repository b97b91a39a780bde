//! An id that comes again when the log has let go of its task, or of a part of it.

use std::time::Duration;

use contract::TaskId;
use contract::task::{State, Submitted};
use contract::v1::{Feedback, TaskPhase};
use messaging::EventLog;
use task_log::{Commit, Ended, Handed, Handover, LetGo, Record, Submission, TaskLog, TaskRef};

use crate::support::{Bench, bench, cancelled, submit_one, submitted, tenant};

/// A task that was drawn, has ended and was judged.
async fn drawn(log: &TaskLog) -> TaskRef {
    let task = submit_one(log).await;
    log.set_state(&task, &State::default()).await.unwrap();
    log.end(&task, &cancelled()).await.unwrap();
    let feedback = Feedback {
        rating: 1,
        ..Feedback::default()
    };
    let record = read(log, &task).await.unwrap();
    assert!(log.set_feedback(&record, &feedback).await.unwrap());
    task
}

/// Another submission of the same id.
fn again(task: &TaskRef) -> Submitted {
    Submitted {
        request_digest: vec![2],
        access_token: "another".to_owned(),
        ..submitted(task.task)
    }
}

async fn read(log: &TaskLog, task: &TaskRef) -> Option<Record> {
    log.read(&tenant(), task.task).await.unwrap()
}

/// Events of a task that are there.
async fn left(tasks: &EventLog, task: &TaskRef) -> usize {
    let filter = format!("inkstone.task.*.*.{}.*", task.task);
    tasks.last_of_each(&filter).await.unwrap().len()
}

/// Lets go of a task's submission and of nothing behind it.
async fn let_go_of_submission(log: &TaskLog, task: &TaskRef) {
    let place = read(log, task).await.unwrap().sequence;
    let retention = log.retention().await.unwrap();
    let later = log.time().await.unwrap() + Duration::from_secs(3600);
    let went = retention.let_go(later, place + 1).await.unwrap();
    assert_eq!(went, LetGo::UpTo(place + 1));
    assert_eq!(read(log, task).await, None);
    assert!(log.done(task).await.unwrap().is_some(), "its end is left");
}

/// It is as any new task is: it waits, is handed over, and ends once.
async fn lives_a_life_of_its_own(log: &TaskLog, second: &Submitted) {
    let task = TaskRef::of(second).unwrap();
    let record = read(log, &task).await.unwrap();
    assert_eq!(record.phase(), TaskPhase::Queued);
    assert_eq!(record.submitted, *second);
    assert_eq!((record.state, record.done), (None, None));
    assert_eq!(record.feedback, None);
    assert_eq!(log.done(&task).await.unwrap(), None);
    let to = Handover {
        task: task.clone(),
        model: second.model.clone(),
        version: second.model_version.clone(),
        weight: 1,
        submitted: Vec::new(),
        sequence: record.sequence,
    };
    assert_eq!(log.hand_over(to).await.unwrap(), Handed::Dispatched);
    assert_eq!(log.end(&task, &cancelled()).await.unwrap(), Ended::First);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_again_before_the_end_of_its_task_has_gone_is_a_new_task_however_it_is_stored()
 {
    for commit in [Commit::OneByOne, Commit::Together, Commit::Measured] {
        new_task_before_its_end_has_gone(commit).await;
    }
}

async fn new_task_before_its_end_has_gone(commit: Commit) {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = drawn(&log).await;
    let_go_of_submission(&log, &task).await;
    assert_eq!(left(&broker.log("TASKS"), &task).await, 3);
    let (intake, committer) = log.intake(commit);
    let second = again(&task);
    // In the company of strangers.
    let mut all: Vec<Submitted> = (0..40).map(|_| submitted(TaskId::random())).collect();
    all.insert(20, second.clone());
    let submitting = async {
        let answers = futures::future::join_all(all.iter().map(|one| intake.submit(one))).await;
        drop(intake);
        answers
    };
    let (answers, ()) = tokio::join!(submitting, committer.run());
    for (index, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), Submission::Accepted, "{index}");
    }
    lives_a_life_of_its_own(&log, &second).await;
    let third = log.submit(&again(&task)).await.unwrap();
    assert_eq!(third, Submission::Existing(Box::new(second)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_comes_again_while_room_is_made_of_its_task_and_the_new_one_stays() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let open = submit_one(&log).await;
    let task = drawn(&log).await;
    let tasks = broker.log("TASKS");
    let from = read(&log, &open).await.unwrap().sequence;
    // Whoever makes room has come this far.
    let submission = read(&log, &task).await.unwrap().sequence;
    assert!(tasks.remove(submission).await.unwrap());
    let second = again(&task);
    assert_eq!(log.submit(&second).await.unwrap(), Submission::Accepted);
    assert_eq!(left(&tasks, &task).await, 1);
    let retention = log.retention().await.unwrap();
    let later = log.time().await.unwrap() + Duration::from_secs(3600);
    assert_eq!(retention.make_room(later, from, u64::MAX).await.unwrap(), 0);
    lives_a_life_of_its_own(&log, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_died_while_removing_what_was_left_leaves_less_of_it() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = drawn(&log).await;
    let_go_of_submission(&log, &task).await;
    let tasks = broker.log("TASKS");
    let end = format!("inkstone.task.*.*.{}.done", task.task);
    let end = tasks.last(&end).await.unwrap().unwrap();
    assert!(tasks.remove(end.sequence).await.unwrap());
    let second = again(&task);
    assert_eq!(log.submit(&second).await.unwrap(), Submission::Accepted);
    lives_a_life_of_its_own(&log, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_who_come_again_at_once_one_makes_the_task_and_the_others_hear_of_it() {
    let Bench {
        server: _server,
        broker: _broker,
        log,
    } = bench().await;
    let task = drawn(&log).await;
    let_go_of_submission(&log, &task).await;
    let all: Vec<Submitted> = (0..8)
        .map(|number| Submitted {
            access_token: number.to_string(),
            ..again(&task)
        })
        .collect();
    let answers = futures::future::join_all(all.iter().map(|one| log.submit(one))).await;
    let answers: Vec<Submission> = answers.into_iter().map(Result::unwrap).collect();
    let stored = read(&log, &task).await.unwrap().submitted;
    for (one, answer) in all.iter().zip(answers) {
        let expected = match *one == stored {
            true => Submission::Accepted,
            false => Submission::Existing(Box::new(stored.clone())),
        };
        assert_eq!(answer, expected);
    }
    lives_a_life_of_its_own(&log, &stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_the_log_has_keeps_its_id_and_all_that_is_known_of_it() {
    let Bench {
        server,
        broker,
        log,
    } = bench().await;
    let task = drawn(&log).await;
    let tasks = broker.log("TASKS");
    let first = Submission::Existing(Box::new(submitted(task.task)));
    assert_eq!(log.submit(&again(&task)).await.unwrap(), first);
    assert_eq!(left(&tasks, &task).await, 4);
    // Also where whoever answers knows of its end and not of its submission.
    server.lag("TASKS", "inkstone.task.*.*.*.done").unwrap();
    assert_eq!(log.submit(&again(&task)).await.unwrap(), first);
    server.catch_up("TASKS").unwrap();
    assert_eq!(left(&tasks, &task).await, 4);
}
