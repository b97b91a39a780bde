//! What holds for a model that draws holds for one that does not.

use diffusion::Limits;

use super::*;
use crate::engine::model::Job;

fn noise(step: Duration) -> Model {
    let limits = Limits {
        size_multiple: 8,
        max_side: 1024,
        default_width: 128,
        default_height: 128,
        max_prompt_tokens: 77,
        max_steps: 100,
        needs_image: false,
        needs_mask: false,
    };
    Model::Simulated(SimulatedModel::new(limits, "d1", step))
}

fn noise_that_hangs_at(file: &Path) -> Model {
    match noise(Duration::ZERO) {
        Model::Simulated(model) => Model::Simulated(model.hanging_at(file)),
        model => model,
    }
}

fn step(model: &Model, job: &mut Job) {
    for progress in model.step(&mut [job]) {
        progress.unwrap();
    }
}

/// The contract of [`Model`] and [`Job`], for either kind.
fn keeps_the_contract(model: &Model) {
    let request = request(3, 4);
    let (mut straight, mut other) = (
        model.begin(&request).unwrap(),
        model.begin(&request).unwrap(),
    );
    assert!(straight.estimate().is_none());
    let mut put_away = model.snapshot(&model.begin(&request).unwrap());
    for taken in 1..=4 {
        // Alone, in company, and taken up anew for each step.
        step(model, &mut straight);
        let mut company = model.begin(&super::request(9, 7)).unwrap();
        drop(model.step(&mut [&mut company, &mut other]));
        let mut resumed = model.resume(&put_away).unwrap();
        step(model, &mut resumed);
        put_away = model.snapshot(&resumed);
        for job in [&straight, &other, &resumed] {
            assert_eq!(
                job.progress(),
                Progress {
                    step: taken,
                    steps: 4
                }
            );
            assert_eq!(model.snapshot(job), put_away);
        }
    }
    assert!(straight.is_finished());
    assert!(
        model.step(&mut [&mut straight])[0].is_err(),
        "there is no fifth"
    );
    let picture = model.paint(straight.latents()).unwrap();
    assert_eq!((picture.width, picture.height), (128, 128));
    assert_eq!(picture.pixels.len(), 128 * 128 * 3);
    let another = model.begin(&super::request(4, 4)).unwrap();
    assert_ne!(another.latents(), model.begin(&request).unwrap().latents());
    put_away.pop();
    assert!(model.resume(&put_away).is_err(), "it was cut short");
    let beyond = Request {
        width: 127,
        ..request
    };
    assert!(matches!(
        model.begin(&beyond),
        Err(BeginError::Parameter { .. })
    ));
}

#[test]
fn a_model_that_draws_keeps_the_contract_of_jobs() {
    keeps_the_contract(&demo());
}

#[test]
fn a_simulated_model_keeps_the_contract_of_jobs() {
    keeps_the_contract(&noise(Duration::ZERO));
}

#[tokio::test]
async fn a_simulated_step_takes_its_time_and_goes_on_from_a_snapshot_to_the_same_picture() {
    let engine = Engine::start(NO_LIMITS).unwrap();
    let reserved = engine.reserve(0, Needs::default()).await.unwrap();
    let model = engine.adopt(noise(Duration::from_millis(20)), reserved);
    let model = model.await.unwrap();
    let studio = Studio { engine, model };
    let began = std::time::Instant::now();
    let (picture, outcome) = studio.begin(request(1, 10), 1).await;
    reaches(&picture, 4).await;
    let picture = [picture];
    let saved = studio.engine.snapshots(&picture).await.unwrap().remove(0);
    let straight = drawn(outcome).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(200));
    let (_picture, outcome) = studio.go_on(request(1, 10), 1, Some(saved)).await;
    assert_eq!(drawn(outcome).await.unwrap(), straight);
}

#[tokio::test]
async fn a_simulated_step_that_is_to_hang_does_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hang");
    let engine = Engine::start(NO_LIMITS).unwrap();
    let reserved = engine.reserve(0, Needs::default()).await.unwrap();
    let model = engine.adopt(noise_that_hangs_at(&file), reserved);
    let model = model.await.unwrap();
    let studio = Studio { engine, model };
    let (_good, outcome) = studio.begin(request(1, 4), 1).await;
    drawn(outcome).await.unwrap();
    std::fs::write(&file, "").unwrap();
    let (picture, _outcome) = studio.begin(request(2, 4), 1).await;
    let hung = studio.engine.hangs(Duration::from_millis(400));
    let hung = tokio::time::timeout(PATIENCE, hung).await;
    let hung = hung.expect("it is noticed");
    assert_eq!(Vec::from_iter(hung.pictures), [picture.id()]);
    assert!(!file.exists(), "the next step would hang too");
}
