//! Jobs as bytes.

use diffusion::fuzz::Mutator;
use diffusion::{Job, Model, Request, ResumeError};
use proptest::prelude::*;

use crate::support::{demo, finish, mini, request, step};

fn halfway(model: &Model, steps: u32) -> Job {
    let mut job = model
        .begin(&Request {
            negative_prompt: Some("dog".to_owned()),
            ..request()
        })
        .unwrap();
    (0..steps).for_each(|_| step(model, &mut job));
    job
}

#[test]
fn a_job_taken_up_after_any_step_gives_the_same_picture() {
    let model = mini();
    for scheduler in [None, Some("euler"), Some("dpm++2m"), Some("dpm++2m-karras")] {
        let request = Request {
            scheduler: scheduler.map(|name| name.parse().unwrap()),
            ..request()
        };
        let uninterrupted = finish(model, model.begin(&request).unwrap());
        for pause in 0..=request.steps {
            let mut job = model.begin(&request).unwrap();
            (0..pause).for_each(|_| step(model, &mut job));
            let bytes = model.snapshot(&job);
            let resumed = model.resume(&bytes).unwrap();
            assert_eq!(resumed.progress(), job.progress());
            assert_eq!(resumed.request(), &request);
            assert_eq!(model.snapshot(&resumed), bytes);
            assert_eq!(
                finish(model, resumed),
                uninterrupted,
                "paused after {pause}"
            );
        }
    }
}

#[test]
fn a_job_put_away_before_every_step_gives_the_same_picture() {
    let model = demo();
    let request = Request {
        width: 128,
        height: 128,
        ..request()
    };
    let mut bytes = model.snapshot(&model.begin(&request).unwrap());
    for _ in 0..request.steps {
        let mut job = model.resume(&bytes).unwrap();
        step(model, &mut job);
        bytes = model.snapshot(&job);
    }
    assert_eq!(
        finish(model, model.resume(&bytes).unwrap()),
        finish(model, model.begin(&request).unwrap())
    );
}

#[test]
fn a_snapshot_of_other_weights_is_refused() {
    let bytes = mini().snapshot(&halfway(mini(), 1));
    let Err(ResumeError::OtherModel { theirs, ours }) = demo().resume(&bytes) else {
        panic!("it was taken")
    };
    assert_eq!(
        (theirs.as_str(), ours.as_str()),
        (mini().digest(), demo().digest())
    );
    assert_eq!(ours.len(), 64);
}

#[test]
fn a_snapshot_cut_anywhere_is_refused() {
    let bytes = mini().snapshot(&halfway(mini(), 2));
    for length in 0..bytes.len() {
        assert!(
            mini().resume(&bytes[..length]).is_err(),
            "{length} bytes were taken"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_altered_snapshot_is_refused(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = BYTES.get_or_init(|| mini().snapshot(&halfway(mini(), 2))).clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(mini().resume(&bytes).is_err());
    }

    #[test]
    fn a_snapshot_that_was_altered_and_sealed_again_is_refused_or_taken_whole(seed: u64) {
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let bytes = BYTES.get_or_init(|| mini().snapshot(&halfway(mini(), 2)));
        let mut mutator = Mutator::new(seed);
        for _ in 0..8 {
            if let Ok(job) = mini().resume(&mutator.mutated(bytes)) {
                prop_assert!(job.progress().step <= job.progress().steps);
                prop_assert!(job.latents().values.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_snapshot_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400), begin: bool) {
        if begin && bytes.len() > 10 {
            bytes[..10].copy_from_slice(b"INKSNAP\n\x03\x00");
        }
        prop_assert!(mini().resume(&bytes).is_err());
    }
}
