//! Random mixes: pictures that come, are watched, cancelled and moved, under limits of all kinds.

use diffusion::SchedulerKind;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Begin {
        request: Box<Request>,
        weight: u32,
    },
    /// Waits until the nth of those that are there is so many steps further, or done.
    Watch {
        which: usize,
        steps: u32,
    },
    Cancel {
        which: usize,
    },
    /// Puts it away, cancels it, and goes on from the bytes.
    MoveOut {
        which: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let kinds = prop::sample::select(SchedulerKind::ALL.to_vec());
    let request = (
        0u64..3,
        2u32..7,
        prop::sample::select(vec![1.0f32, 2.0]),
        prop::sample::select(vec![(128u32, 128u32), (64, 128)]),
        prop::option::of(kinds),
    );
    let request = request.prop_map(
        |(seed, steps, guidance_scale, (width, height), scheduler)| Request {
            prompt: ["a 3d panda", "a boat"][seed as usize % 2].to_owned(),
            width,
            height,
            guidance_scale,
            scheduler,
            ..super::request(seed, steps)
        },
    );
    let weight = prop::sample::select(vec![1u32, 4, 8]);
    let which = 0usize..8;
    let act = prop_oneof![
        4 => (request, weight).prop_map(|(request, weight)| Act::Begin { request: Box::new(request), weight }),
        3 => (which.clone(), 1u32..3).prop_map(|(which, steps)| Act::Watch { which, steps }),
        1 => which.clone().prop_map(|which| Act::Cancel { which }),
        1 => which.prop_map(|which| Act::MoveOut { which }),
    ];
    prop::collection::vec(act, 4..14)
}

struct There {
    request: Request,
    weight: u32,
    picture: Picture,
    outcome: Outcome,
}

/// Every picture that is not cancelled is the one that is drawn alone; memory stays below its limit and is given back.
async fn play(acts: Vec<Act>, limits: EngineLimits) {
    let studio = Studio::open(limits).await;
    let mut all: Vec<There> = Vec::new();
    for act in acts {
        let there = |which: usize| (!all.is_empty()).then(|| which % all.len());
        match act {
            Act::Begin { request, weight } => {
                let request = *request;
                let (picture, outcome) = studio.begin(request.clone(), weight).await;
                all.push(There {
                    request,
                    weight,
                    picture,
                    outcome,
                });
            }
            Act::Watch { which, steps } => {
                if let Some(one) = there(which).map(|at| &all[at]) {
                    let now = one.picture.progress();
                    let most = now.steps.max(one.request.steps);
                    reaches(&one.picture, (now.step + steps).min(most)).await;
                }
            }
            Act::Cancel { which } => {
                if let Some(at) = there(which) {
                    drop(all.remove(at));
                }
            }
            Act::MoveOut { which } => {
                let Some(at) = there(which) else { continue };
                let one = all.remove(at);
                let saved = studio.engine.snapshots(&[one.picture]).await.unwrap();
                let saved = saved.into_iter().next().filter(|bytes| !bytes.is_empty());
                let again = studio.go_on(one.request.clone(), one.weight, saved).await;
                all.push(There {
                    request: one.request,
                    weight: one.weight,
                    picture: again.0,
                    outcome: again.1,
                });
            }
        }
    }
    for one in all {
        let pixels = drawn(one.outcome).await.unwrap();
        assert!(pixels == alone(&one.request), "{:?}", one.request);
        drop(one.picture);
    }
    studio
        .account_is("all is given back", |account| {
            (account.jobs, account.step, account.decoder, account.aside) == (0, 0, 0, 0)
        })
        .await;
    let most = studio.engine.account().most;
    assert!(most <= limits.memory, "{most} of {}", limits.memory);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_and_goes_every_picture_is_the_one_that_is_drawn_alone(
        acts in acts(),
        pictures in 1u64..5,
        max_batch in 1usize..5,
        bound in prop::option::of(1u64..60),
    ) {
        let limits = EngineLimits {
            max_batch,
            max_step: bound.map(Duration::from_millis),
            memory: room_for(pictures),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.unwrap().block_on(play(acts, limits));
    }
}
