//! The log against a real broker.

// Helpers of tests fail by panicking, like the tests themselves; what a test spawns ends with it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod again;
mod feedback;
mod lists;
mod open;
mod retention;
mod states;
mod support;
mod work;

use contract::TaskId;
use contract::task::{DeadLetter, Done, Phase, State, Submitted, Succeeded, done};
use contract::v1::TaskPhase;
use messaging::BrokerError;
use prost::Message as _;
use task_log::{Commit, Ended, Submission, TaskRef, Update};

use support::{Bench, bench, cancelled, ended, scratch_log, submit_one, submitted, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_submission_twice_is_one_task() {
    let (_server, log) = scratch_log().await;
    let first = submitted(TaskId::random());
    assert_eq!(log.submit(&first).await.unwrap(), Submission::Accepted);
    let again = log.submit(&first).await.unwrap();
    assert_eq!(again, Submission::Existing(Box::new(first.clone())));
    let mut other = first.clone();
    other.request_digest = vec![2];
    let conflict = log.submit(&other).await.unwrap();
    assert_eq!(conflict, Submission::Existing(Box::new(first.clone())));
    other.lane = "standard-hd".to_owned();
    let other_lane = log.submit(&other).await.unwrap();
    assert_eq!(other_lane, Submission::Existing(Box::new(first)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_submissions_that_come_together_each_hears_of_its_own_however_they_are_stored() {
    for commit in [Commit::OneByOne, Commit::Together, Commit::Measured] {
        each_hears_of_its_own(commit).await;
    }
}

async fn each_hears_of_its_own(commit: Commit) {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let (intake, committer) = log.intake(commit);
    let running = tokio::spawn(committer.run());
    // One that was there before, and one that comes twice, as other requests, among a thousand that are new.
    let before = submitted(TaskId::random());
    log.submit(&before).await.unwrap();
    let mut again = before.clone();
    again.request_digest = vec![2];
    let twice = submitted(TaskId::random());
    let mut second = twice.clone();
    second.lane = "standard-hd".to_owned();
    let mut all: Vec<Submitted> = (0..1000).map(|_| submitted(TaskId::random())).collect();
    all.insert(300, again);
    all.insert(600, twice.clone());
    all.insert(601, second.clone());
    let answers = futures::future::join_all(all.iter().map(|one| intake.submit(one))).await;
    let mut twins = Vec::new();
    for (index, (one, answer)) in all.iter().zip(answers).enumerate() {
        let expected = match index {
            300 => Submission::Existing(Box::new(before.clone())),
            // Either may be first.
            600 | 601 => {
                twins.push(answer.unwrap());
                continue;
            }
            _ => Submission::Accepted,
        };
        assert_eq!(answer.unwrap(), expected, "{index}");
        if index % 97 == 0 {
            let task = TaskRef::of(one).unwrap();
            let stored = log.read(&task.tenant, task.task).await.unwrap();
            assert!(stored.is_some());
        }
    }
    let first = twins
        .iter()
        .position(|one| *one == Submission::Accepted)
        .unwrap();
    let other = [&twice, &second][first].clone();
    assert_eq!(twins[1 - first], Submission::Existing(Box::new(other)));
    let stored = broker.log("TASKS").last_sequence().await.unwrap();
    assert_eq!(stored, 1002);
    drop(intake);
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_did_not_answer_for_is_settled_one_by_one() {
    for commit in [Commit::OneByOne, Commit::Together, Commit::Measured] {
        settled_one_by_one(commit).await;
    }
}

async fn settled_one_by_one(commit: Commit) {
    let Bench {
        mut server,
        broker: _broker,
        log,
    } = bench().await;
    let (intake, committer) = log.intake(commit);
    let running = tokio::spawn(committer.run());
    let all: Vec<Submitted> = (0..400).map(|_| submitted(TaskId::random())).collect();
    let submitting = tokio::spawn({
        let (intake, all) = (intake.clone(), all.clone());
        async move { futures::future::join_all(all.iter().map(|one| intake.submit(one))).await }
    });
    server.kill();
    let answers = submitting.await.unwrap();
    server.restart().unwrap();
    for (one, answer) in all.iter().zip(answers) {
        let task = TaskRef::of(one).unwrap();
        // Whoever was told that it is stored finds it; whoever was not submits again and hears how it is.
        let again = loop {
            match intake.submit(one).await {
                Ok(again) => break again,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        };
        if answer.is_ok() {
            assert_eq!(again, Submission::Existing(Box::new(one.clone())));
        }
        assert!(log.read(&task.tenant, task.task).await.unwrap().is_some());
    }
    drop(intake);
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_ends_at_once_one_counts_and_the_others_read_it() {
    let (_server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    let ends = (0..32).map(|attempt| {
        let (log, task) = (log.clone(), task.clone());
        async move {
            let mut done = if attempt % 2 == 0 {
                cancelled()
            } else {
                ended(done::Outcome::Succeeded(Succeeded::default()))
            };
            done.attempt = attempt;
            (log.end(&task, &done).await.unwrap(), done)
        }
    });
    let outcomes = futures::future::join_all(ends).await;
    let firsts: Vec<_> = outcomes
        .iter()
        .filter(|(e, _)| *e == Ended::First)
        .collect();
    assert_eq!(firsts.len(), 1);
    let winner = &firsts[0].1;
    for (outcome, _) in &outcomes {
        assert!(*outcome == Ended::First || *outcome == Ended::Already(Box::new(winner.clone())));
    }
    let record = log.read(&task.tenant, task.task).await.unwrap().unwrap();
    assert_eq!(record.done.as_ref(), Some(winner));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_its_tenants_alone() {
    let (_server, log) = scratch_log().await;
    let id = TaskId::random();
    log.submit(&submitted(id)).await.unwrap();
    assert!(log.read(&tenant(), id).await.unwrap().is_some());
    let other = "other".parse().unwrap();
    assert!(log.read(&other, id).await.unwrap().is_none());
    assert!(log.watch(&other, id).await.unwrap().is_none());
    assert!(log.read_for_any_tenant(id).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_every_phase_and_ends_with_the_end() {
    let (_server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    let mut watch = log.watch(&task.tenant, task.task).await.unwrap().unwrap();
    let mut phases = Vec::new();
    while let Some(update) = watch.next().await.unwrap() {
        let Update::Changed(record) = update else {
            continue;
        };
        phases.push(record.phase());
        match record.phase() {
            TaskPhase::Queued => {
                let state = State {
                    phase: Phase::Running.into(),
                    attempt: 1,
                    ..State::default()
                };
                log.set_state(&task, &state).await.unwrap();
            }
            TaskPhase::Running => drop(log.end(&task, &cancelled()).await.unwrap()),
            _ => {}
        }
    }
    assert_eq!(
        phases,
        [TaskPhase::Queued, TaskPhase::Running, TaskPhase::Cancelled]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_heard_of_counts_before_a_read_shows_it() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = submit_one(&log).await;
    let mut ends = log.ends(&task).await.unwrap();
    // Told and not stored here: as from a replica that lags, no read shows it.
    let place = format!("inkstone.event.acme.standard-image.{}.done", task.task);
    let told = cancelled().encode_to_vec().into();
    broker.tell(place, told).await;
    let limit = std::time::Duration::from_secs(30);
    let end = tokio::time::timeout(limit, ends.wait()).await;
    assert_eq!(end.unwrap(), cancelled());
    assert_eq!(log.done(&task).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_a_broker_that_is_killed_and_comes_back() {
    let (mut server, log) = scratch_log().await;
    let task = submit_one(&log).await;
    let mut watch = log.watch(&task.tenant, task.task).await.unwrap().unwrap();
    assert!(matches!(
        watch.next().await.unwrap(),
        Some(Update::Changed(_))
    ));
    server.kill();
    server.restart().unwrap();
    let end = async {
        while log.end(&task, &cancelled()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let seen = async {
        loop {
            if let Ok(Some(Update::Changed(record))) = watch.next().await {
                return record.phase();
            }
        }
    };
    let limit = std::time::Duration::from_secs(30);
    let both = tokio::time::timeout(limit, async { tokio::join!(end, seen).1 });
    assert_eq!(both.await.unwrap(), TaskPhase::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_is_refused_while_the_broker_is_away_and_leaves_no_ghost() {
    let Bench {
        mut server,
        broker,
        log,
    } = bench().await;
    server.kill();
    // From when the client has noticed: what is written in the moment of the break may be sent again (ARCHITECTURE.md, "What is
    // missing").
    while !matches!(broker.probe().await, Err(BrokerError::Unreachable { .. })) {}
    let event = submitted(TaskId::random());
    for commit in [Commit::OneByOne, Commit::Together] {
        let (intake, committer) = log.intake(commit);
        let (refused, ()) = tokio::join!(
            async {
                // Two, which go together where they may.
                let other = submitted(TaskId::random());
                let refused = tokio::join!(intake.submit(&event), intake.submit(&other));
                drop(intake);
                [refused.0.unwrap_err(), refused.1.unwrap_err()]
            },
            committer.run()
        );
        for error in refused {
            assert!(error.is_not_stored(), "{error:?}");
        }
    }
    server.restart().unwrap();
    let task = TaskRef::of(&event).unwrap();
    let found = loop {
        match log.read(&task.tenant, task.task).await {
            Ok(found) => break found,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    assert!(found.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_kept_with_its_reason_until_it_is_removed() {
    let (_server, log) = scratch_log().await;
    let letter = DeadLetter {
        tenant: "acme".to_owned(),
        task_id: TaskId::random().to_string(),
        reason: "it broke three workers".to_owned(),
        ..DeadLetter::default()
    };
    log.bury(&letter).await.unwrap();
    let id = format!("{}.{}", letter.tenant, letter.task_id)
        .parse()
        .unwrap();
    let kept = log.letter(&id).await.unwrap().unwrap().unwrap();
    assert_eq!(kept.says, letter);
    assert!(log.remove_letter(kept.sequence).await.unwrap());
    assert!(log.letter(&id).await.unwrap().is_none());
    let again = log.remove_letter(kept.sequence).await.unwrap();
    assert!(!again, "whoever comes second has removed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_read_is_an_end() {
    let Bench {
        server: _server,
        broker,
        log,
    } = bench().await;
    let task = submit_one(&log).await;
    let mut ends = log.ends(&task).await.unwrap();
    let subject = format!("inkstone.task.acme.{}.{}.done", task.lane, task.task);
    let nonsense = b"\xff\xff not protobuf".as_slice().into();
    broker.log("TASKS").put(&subject, nonsense).await.unwrap();
    let unknown = Done::default();
    assert_eq!(ends.wait().await, unknown);
    assert_eq!(log.done(&task).await.unwrap(), Some(unknown.clone()));
    let record = log.read(&tenant(), task.task).await.unwrap().unwrap();
    assert_eq!(record.phase(), TaskPhase::Failed);
    let ended = log.end(&task, &cancelled()).await.unwrap();
    assert_eq!(ended, Ended::Already(Box::new(unknown)));
}
