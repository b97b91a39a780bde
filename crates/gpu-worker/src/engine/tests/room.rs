//! Who is let in when memory is short, and that it is given back.

use super::*;

#[tokio::test]
async fn a_picture_that_cannot_fit_is_refused_with_the_numbers_and_disturbs_no_other() {
    let memory = room_for(2);
    let limits = EngineLimits {
        memory,
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let good = studio.begin(request(5, 4), 1).await;
    let large = Request {
        width: 2048,
        height: 2048,
        ..request(6, 4)
    };
    let large = studio.begin(large, 8).await;
    let Err(EngineError::DoesNotFit(refused)) = drawn(large.1).await else {
        panic!("it is refused");
    };
    assert_eq!(refused.weights, studio.model.weights_bytes());
    assert!(refused.needs + refused.weights > memory, "{refused}");
    assert!(drawn(good.1).await.unwrap() == alone(&request(5, 4)));
}

#[tokio::test]
async fn a_picture_that_has_no_room_now_waits_for_it() {
    let memory = room_for(1);
    let limits = EngineLimits {
        memory,
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let (first, second) = (
        studio.begin(request(1, 5), 1).await,
        studio.begin(request(2, 5), 1).await,
    );
    reaches(&first.0, 2).await;
    assert_eq!(second.0.progress().step, 0);
    assert!(drawn(first.1).await.unwrap() == alone(&request(1, 5)));
    assert!(drawn(second.1).await.unwrap() == alone(&request(2, 5)));
    assert!(studio.engine.account().most <= memory);
}

#[tokio::test]
async fn a_more_urgent_picture_takes_the_room_of_one_that_goes_on_later_to_the_same_picture() {
    let memory = room_for(1);
    let limits = EngineLimits {
        memory,
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let light = studio.begin(request(1, 40), 1).await;
    reaches(&light.0, 2).await;
    let heavy = studio.begin(request(2, 4), 8).await;
    assert!(drawn(heavy.1).await.unwrap() == alone(&request(2, 4)));
    assert!(
        light.0.progress().step < 40,
        "the heavy one did not wait for it"
    );
    drop(heavy.0);
    assert!(drawn(light.1).await.unwrap() == alone(&request(1, 40)));
    assert!(studio.engine.account().most <= memory);
}

#[tokio::test]
async fn a_cancelled_picture_gives_its_memory_back_at_the_next_step() {
    let limits = EngineLimits {
        memory: room_for(2),
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let (first, second, third) = (
        studio.begin(request(1, 500), 1).await,
        studio.begin(request(2, 500), 1).await,
        studio.begin(request(3, 3), 1).await,
    );
    reaches(&first.0, 1).await;
    reaches(&second.0, 1).await;
    assert_eq!(third.0.progress().step, 0, "there is room for two");
    drop(first);
    assert!(drawn(third.1).await.unwrap() == alone(&request(3, 3)));
    // One that is done can still be had as bytes, until its claim is gone.
    drop((second, third.0));
    studio
        .account_is("all is given back", |account| {
            (account.jobs, account.step, account.aside) == (0, 0, 0)
        })
        .await;
}

#[tokio::test]
async fn a_model_without_room_is_refused_and_one_with_room_makes_pictures_wait() {
    let (needs, weights) = {
        let model = demo();
        let needs = loaded::needs(&model, &request(1, 1));
        (needs, model.weights_bytes())
    };
    let limits = EngineLimits {
        memory: room_for(2),
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let Err(ReserveError::DoesNotFit(refused)) = studio.engine.reserve(1 << 40, needs).await else {
        panic!("it is refused");
    };
    assert_eq!(refused.weights, weights);
    assert!(refused.needs > 1 << 40);

    let (first, second) = (
        studio.begin(request(1, 60), 1).await,
        studio.begin(request(2, 60), 1).await,
    );
    reaches(&first.0, 1).await;
    reaches(&second.0, 1).await;
    // As much as one of them: that one makes way, and the other goes on.
    let other = studio.engine.reserve(needs.job, needs).await.unwrap();
    studio
        .account_is("one has made way", |account| {
            account.weights == weights + needs.job && account.jobs == needs.job
        })
        .await;
    drop(other);
    assert!(drawn(first.1).await.unwrap() == alone(&request(1, 60)));
    assert!(drawn(second.1).await.unwrap() == alone(&request(2, 60)));
    assert!(studio.engine.account().most <= limits.memory);
}

#[tokio::test]
async fn a_model_that_is_unloaded_leaves_the_account() {
    let studio = Studio::open(NO_LIMITS).await;
    let weights = studio.model.weights_bytes();
    studio
        .account_is("the weights are accounted", |account| {
            account.weights == weights
        })
        .await;
    let Studio { engine, model } = studio;
    drop(model);
    let mut account = engine.account.clone();
    let empty = account.wait_for(|account| account.weights == 0);
    let empty = tokio::time::timeout(PATIENCE, empty).await;
    drop(empty.expect("the weights are given back").unwrap());
}

#[tokio::test]
async fn a_picture_that_comes_while_a_model_is_being_loaded_is_not_refused_for_good() {
    let limits = EngineLimits {
        memory: room_for(2),
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let job = loaded::needs(&studio.model, &request(1, 1)).job;
    // Each of them leaves room for a picture, both together do not.
    let first = studio.engine.reserve(job, Needs::default()).await.unwrap();
    let second = studio.engine.reserve(job, Needs::default()).await.unwrap();
    let (picture, outcome) = studio.begin(request(1, 4), 1).await;
    studio.looked_at_all().await;
    let progress = picture.progress();
    assert_eq!((progress.step, progress.steps), (0, 0), "it waits");
    drop(second);
    assert!(drawn(outcome).await.unwrap() == alone(&request(1, 4)));
    drop(first);
    assert!(studio.engine.account().most <= limits.memory);
}

#[tokio::test]
async fn a_model_that_would_leave_a_served_one_no_picture_is_refused_and_that_one_goes_on() {
    let limits = EngineLimits {
        memory: room_for(2),
        ..NO_LIMITS
    };
    let studio = Studio::open(limits).await;
    let needs = loaded::needs(&studio.model, &request(1, 1));
    let weights = studio.model.weights_bytes();
    // Its weights alone would have room: known before it is loaded, or found out then.
    let early = studio.engine.reserve(2 * needs.job + 64, Needs::default());
    let Err(ReserveError::DoesNotFit(refused)) = early.await else {
        panic!("it is refused");
    };
    assert_eq!(refused.weights, weights);
    let reserved = studio.engine.reserve(0, Needs::default()).await.unwrap();
    let late = studio.engine.adopt(demo(), reserved).await;
    assert!(matches!(late, Err(ReserveError::DoesNotFit(_))));
    studio
        .account_is("nothing of it is left", |account| {
            account.weights == weights
        })
        .await;
    let (_picture, outcome) = studio.begin(request(1, 4), 1).await;
    assert!(drawn(outcome).await.unwrap() == alone(&request(1, 4)));
}

#[tokio::test]
async fn a_model_that_has_drawn_is_reckoned_with_by_what_it_took() {
    let studio = Studio::open(NO_LIMITS).await;
    let before = studio.model.step_memory(128, 128, 2);
    assert_eq!(before.measured, None);
    studio.engine.warm_up(&studio.model, 4, true).await.unwrap();
    // Other tests of this process may compute just then, and what ran beside another pass tells nothing.
    for memory in [
        studio.model.step_memory(128, 128, 2),
        studio.model.step_memory(128, 128, 8),
        studio.model.decode_memory(128, 128),
    ] {
        if let Some(measured) = memory.measured {
            assert!(measured <= memory.computed, "{memory:?}");
            assert!(memory.bytes() <= memory.computed, "{memory:?}");
            assert!(
                memory.bytes() >= measured.min(memory.computed),
                "{memory:?}"
            );
        }
    }
    // And the place that it took is free again.
    studio
        .account_is("free", |account| account.jobs == 0 && account.step == 0)
        .await;
}
