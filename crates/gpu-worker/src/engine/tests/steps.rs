//! What a step is made of, and what happens between two.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diffusion::{Mask, SchedulerKind};

use super::entry::same;
use super::*;

async fn largest_batch(max_step: Option<Duration>) -> usize {
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = largest.clone();
    let step: Step = Box::new(move |model, jobs| {
        seen.fetch_max(jobs.len(), Ordering::Relaxed);
        model.step(jobs)
    });
    let limits = EngineLimits {
        max_step,
        ..NO_LIMITS
    };
    let studio = Studio::with(limits, step).await;
    let mut pictures = Vec::new();
    for seed in 1..4 {
        pictures.push((seed, studio.begin(request(seed, 5), 1).await));
    }
    for (seed, (_picture, outcome)) in pictures {
        assert!(drawn(outcome).await.unwrap() == alone(&request(seed, 5)));
    }
    largest.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_step_that_would_take_too_long_is_not_taken_together() {
    assert_eq!(largest_batch(Some(Duration::from_nanos(1))).await, 1);
    assert!(largest_batch(None).await > 1);
}

#[tokio::test]
async fn previews_come_in_order_and_hold_nobody_up() {
    let studio = Studio::open(NO_LIMITS).await;
    let (seen, mut previews) = mpsc::channel(16);
    let start = Start {
        model: studio.model.clone(),
        request: request(1, 12),
        resume: None,
        flow: studio.engine.flow(1),
        index: 7,
        previews: 3,
        seen,
    };
    let (_picture, outcome) = studio.engine.begin(start).await.unwrap();
    let mut numbers = Vec::new();
    while let Some(preview) = previews.recv().await {
        assert_eq!((preview.index, preview.image.width), (7, 128));
        numbers.push(preview.preview);
        if preview.preview == 2 {
            break;
        }
    }
    assert_eq!(numbers, [0, 1, 2]);
    assert!(drawn(outcome).await.unwrap() == alone(&request(1, 12)));
}

#[tokio::test]
async fn previews_of_a_scheduler_with_two_evaluations_a_step_are_spaced_over_all_of_them() {
    let studio = Studio::open(NO_LIMITS).await;
    let request = Request {
        scheduler: Some(SchedulerKind::Heun),
        ..request(1, 12)
    };
    let (seen, mut previews) = mpsc::channel(16);
    let start = Start {
        model: studio.model.clone(),
        request: request.clone(),
        resume: None,
        flow: studio.engine.flow(1),
        index: 0,
        previews: 3,
        seen,
    };
    let (picture, outcome) = studio.engine.begin(start).await.unwrap();
    reaches(&picture, 1).await;
    assert_eq!(picture.progress().steps, 23);
    let mut job = studio.model.begin(&request).unwrap();
    for place in [6, 12, 18] {
        while job.progress().step < place {
            for progress in studio.model.step(&mut [&mut job]) {
                progress.unwrap();
            }
        }
        let wanted = studio.model.paint(job.estimate().unwrap()).unwrap();
        let preview = tokio::time::timeout(PATIENCE, previews.recv()).await;
        let preview = preview.expect("it is shown").expect("it goes on");
        assert_eq!(preview.preview, place / 6 - 1);
        assert!(preview.image == wanted, "after {place} evaluations");
    }
    assert!(drawn(outcome).await.unwrap() == alone(&request));
}

#[test]
fn a_job_goes_on_with_a_request_whose_strength_was_filled_in() {
    let image = RgbImage {
        width: 128,
        height: 128,
        pixels: vec![100; 128 * 128 * 3],
    };
    let request = Request {
        image: Some(Arc::new(image)),
        ..request(1, 10)
    };
    let job = demo().begin(&request).unwrap();
    assert!(job.request().strength.is_some());
    assert!(same(job.request(), &request));
    let other = Request {
        strength: Some(0.7),
        ..request
    };
    assert!(!same(job.request(), &other));
}

#[test]
fn the_engine_goes_through_as_many_steps_as_the_contract_says() {
    let model = demo();
    let side = 128;
    let image = Arc::new(RgbImage {
        width: side,
        height: side,
        pixels: vec![100; 128 * 128 * 3],
    });
    let all = Arc::new(Mask {
        width: side,
        height: side,
        values: vec![255; 128 * 128],
    });
    for (steps, strength, masked) in [
        (3, None, false),
        (4, None, false),
        (1, None, true),
        (2, None, true),
        (10, Some(0.7), false),
        (19, Some(0.05), false),
        (20, Some(0.05), false),
    ] {
        let source = contract::v1::Source {
            mask_key: if masked {
                "x".to_owned()
            } else {
                String::new()
            },
            strength,
            ..contract::v1::Source::default()
        };
        let led = contract::source::steps_led(steps, contract::source::strength(&source));
        let request = Request {
            image: Some(Arc::clone(&image)),
            mask: masked.then(|| Arc::clone(&all)),
            strength,
            ..request(1, steps)
        };
        let begun = model.begin(&request).map(|job| job.progress().steps);
        assert_eq!(begun.unwrap_or(0), led, "{steps} at {strength:?}");
    }
}

#[tokio::test]
async fn pictures_are_put_away_together_whether_they_wait_are_drawn_or_are_done() {
    let limits = EngineLimits {
        memory: room_for(2),
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let done = studio.begin(request(1, 1), 1).await;
    assert!(drawn(done.1).await.is_ok());
    let drawing = studio.begin(request(2, 400), 1).await;
    let other = studio.begin(request(3, 400), 1).await;
    reaches(&drawing.0, 1).await;
    reaches(&other.0, 1).await;
    let waiting = studio.begin(request(4, 4), 1).await;
    let pictures = [done.0, drawing.0, waiting.0];
    let saved = studio.engine.snapshots(&pictures).await.unwrap();
    assert!(saved[2].is_empty(), "it has not begun");
    let steps: Vec<u32> = saved[..2]
        .iter()
        .map(|bytes| studio.model.resume(bytes).unwrap().progress().step)
        .collect();
    assert!(steps[0] == 1 && steps[1] >= 1, "{steps:?}");
}

#[tokio::test]
async fn bytes_that_cannot_be_used_cost_time_and_nothing_else() {
    let studio = Studio::open(NO_LIMITS).await;
    let other = studio.model.begin(&request(9, 4)).unwrap();
    let other = studio.model.snapshot(&other);
    for bytes in [b"damaged".to_vec(), other] {
        let (_picture, outcome) = studio.go_on(request(1, 4), 1, Some(bytes)).await;
        assert!(drawn(outcome).await.unwrap() == alone(&request(1, 4)));
    }
}
