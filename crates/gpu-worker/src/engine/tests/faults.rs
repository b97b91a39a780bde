//! Faults put before the engine's own step: whoever is at fault fails, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::model::Job;

use super::*;

/// The seed of a picture that a fault is put into.
const POISONED: u64 = 666;

fn poisoned(jobs: &[&mut Job]) -> bool {
    jobs.iter().any(|job| job.request().seed == POISONED)
}

#[tokio::test]
async fn a_picture_at_which_the_engine_panics_fails_alone() {
    let companions = Arc::new(AtomicUsize::new(0));
    let seen = companions.clone();
    let step: Step = Box::new(move |model, jobs| {
        if poisoned(jobs) && jobs[0].progress().step >= 1 {
            seen.fetch_max(jobs.len(), Ordering::Relaxed);
            // In the middle: some have been taken further already, some have not.
            if jobs.len() > 2 && jobs[0].request().seed != POISONED {
                drop(model.step(&mut jobs[..1]));
            }
            panic!("a fault in a kernel");
        }
        model.step(jobs)
    });
    let studio = Studio::with(NO_LIMITS, step).await;
    let mut pictures = Vec::new();
    for seed in [1, POISONED, 2, 3] {
        pictures.push((seed, studio.begin(request(seed, 6), 1).await));
    }
    for (seed, (_picture, outcome)) in pictures {
        match drawn(outcome).await {
            Ok(pixels) => assert!(pixels == alone(&request(seed, 6)), "seed {seed}"),
            Err(EngineError::Panicked { message, .. }) => {
                assert_eq!((seed, message.as_str()), (POISONED, "a fault in a kernel"));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(companions.load(Ordering::Relaxed) > 1, "it was not alone");
}

#[tokio::test]
async fn a_picture_with_values_that_are_not_finite_fails_alone_and_names_the_step() {
    let step: Step = Box::new(|model, jobs| {
        let mut results = model.step(jobs);
        for (job, result) in jobs.iter().zip(&mut results) {
            if job.request().seed == POISONED && job.progress().step == 3 {
                *result = Err(StepError::NotFinite { step: 3 });
            }
        }
        results
    });
    let studio = Studio::with(NO_LIMITS, step).await;
    let bad = studio.begin(request(POISONED, 6), 1).await;
    let good = studio.begin(request(4, 6), 1).await;
    let error = drawn(bad.1).await.unwrap_err();
    assert!(
        lifecycle::chain(&error).contains("step 3"),
        "{}",
        lifecycle::chain(&error)
    );
    assert!(drawn(good.1).await.unwrap() == alone(&request(4, 6)));
}

#[tokio::test]
async fn an_engine_that_panics_at_everything_ends() {
    let studio = Studio::with(NO_LIMITS, Box::new(|_, _| panic!("broken"))).await;
    let mut pictures = Vec::new();
    for seed in 0..2 {
        let (picture, outcome) = studio.begin(request(seed, 4), 1).await;
        pictures.push(picture);
        assert!(matches!(
            drawn(outcome).await,
            Err(EngineError::Panicked { .. })
        ));
    }
    let gone = tokio::time::timeout(PATIENCE, studio.engine.gone()).await;
    gone.expect("the engine ends");
}

#[tokio::test]
async fn a_task_at_which_the_engine_always_panics_takes_it_not_with_it() {
    let step: Step = Box::new(|model, jobs| {
        if poisoned(jobs) {
            panic!("a fault in a kernel");
        }
        model.step(jobs)
    });
    let studio = Studio::with(NO_LIMITS, step).await;
    let task = contract::TaskId::random();
    for _ in 0..5 {
        let start = Start {
            model: studio.model.clone(),
            request: request(POISONED, 4),
            resume: None,
            flow: studio.engine.flow_of(task, 1),
            index: 0,
            previews: 0,
            seen: mpsc::channel(1).0,
        };
        let (_picture, outcome) = studio.engine.begin(start).await.unwrap();
        let panicked = drawn(outcome).await;
        assert!(matches!(panicked, Err(EngineError::Panicked { .. })));
    }
    let (_picture, outcome) = studio.begin(request(4, 4), 1).await;
    assert!(drawn(outcome).await.unwrap() == alone(&request(4, 4)));
}

#[tokio::test]
async fn two_tasks_at_which_the_engine_panics_in_one_step_take_it_not_with_them() {
    let (tell, mut begun) = mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let companions = Arc::new(AtomicUsize::new(0));
    let seen = companions.clone();
    let step: Step = Box::new(move |model, jobs| {
        if poisoned(jobs) {
            seen.fetch_max(jobs.len(), Ordering::Relaxed);
            panic!("a fault in a kernel");
        }
        let _ = tell.send(());
        // The first step waits for the two; no other does.
        let _ = wait.recv();
        model.step(jobs)
    });
    let studio = Studio::with(NO_LIMITS, step).await;
    let (_first, first) = studio.begin(request(4, 1), 1).await;
    begun.recv().await.unwrap();
    let one = studio.begin(request(POISONED, 4), 1).await;
    let two = studio.begin(request(POISONED, 4), 1).await;
    drop(go_on);
    drop(drawn(first).await.unwrap());
    for (_picture, outcome) in [one, two] {
        let panicked = drawn(outcome).await;
        assert!(matches!(panicked, Err(EngineError::Panicked { .. })));
    }
    assert_eq!(companions.load(Ordering::Relaxed), 2, "they shared it");
    let (_good, outcome) = studio.begin(request(4, 4), 1).await;
    assert!(drawn(outcome).await.unwrap() == alone(&request(4, 4)));
}

#[tokio::test]
async fn an_engine_that_ends_tells_who_had_no_part_in_it() {
    let (tell, mut begun) = mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let step: Step = Box::new(move |_, _| {
        let _ = tell.send(());
        let _ = wait.recv();
        panic!("broken")
    });
    let studio = Studio::with(NO_LIMITS, step).await;
    let mut outcomes = Vec::new();
    // Of different sizes: none shares a step with another.
    for width in [64, 128, 192] {
        let flow = studio.engine.flow(1);
        let start = Start {
            model: studio.model.clone(),
            request: Request {
                width,
                ..request(4, 4)
            },
            resume: None,
            flow,
            index: 0,
            previews: 0,
            seen: mpsc::channel(1).0,
        };
        let (picture, outcome) = studio.engine.begin(start).await.unwrap();
        if width == 64 {
            begun.recv().await.unwrap();
        }
        outcomes.push((picture, outcome, flow));
    }
    drop(go_on);
    let mut unanswered = 0;
    for (_picture, outcome, flow) in outcomes {
        let outcome = tokio::time::timeout(PATIENCE, outcome).await;
        let gone = studio.engine.gone_for(flow);
        match outcome.expect("the engine ends") {
            Ok(answer) => assert!(matches!(answer, Err(EngineError::Panicked { .. }))),
            Err(_) => {
                unanswered += 1;
                assert!(matches!(gone, EngineError::GoneWithOthers));
            }
        }
    }
    assert_eq!(unanswered, 1, "two make it end");
}

#[tokio::test]
async fn a_step_that_does_not_come_back_is_noticed_with_those_whom_it_is_for() {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let step: Step = Box::new(move |model, jobs| {
        if poisoned(jobs) {
            // Until the test is over.
            let _ = wait.lock().unwrap().recv();
        }
        model.step(jobs)
    });
    let studio = Studio::with(NO_LIMITS, step).await;
    let limit = Duration::from_millis(400);
    // One that goes on is not accused, however long it takes in all.
    let (_good, outcome) = studio.begin(request(4, 60), 1).await;
    tokio::select! {
        hung = studio.engine.hangs(PATIENCE) => panic!("{hung}"),
        outcome = drawn(outcome) => drop(outcome.unwrap()),
    }
    let (picture, _outcome) = studio.begin(request(POISONED, 4), 1).await;
    let hung = tokio::time::timeout(PATIENCE, studio.engine.hangs(limit));
    let hung = hung.await.expect("it is noticed");
    assert_eq!((hung.thread, hung.doing), ("engine", "a step"));
    assert_eq!(Vec::from_iter(hung.pictures), [picture.id()]);
    drop(go_on);
}
