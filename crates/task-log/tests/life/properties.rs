//! What must hold in every state that can be reached.

use stateright::Property;
use task_log::transition::Ending;

use crate::model::Life;
use crate::world::{Canceller, End, MAX_ATTEMPTS, World};

pub(crate) const NEWEST_STATE: &str =
    "the state is the latest run's: one taken for dead changes nothing";
pub(crate) const ATTEMPTS: &str = "attempts are bounded";
pub(crate) const CHECKPOINT: &str = "a checkpoint that the state names is there";
pub(crate) const PICTURES: &str =
    "pictures that no end names go with whoever drew them, unless that dies";

type Holds = fn(&Life, &World) -> bool;

pub(crate) fn all() -> Vec<Property<Life>> {
    let always: [(&'static str, Holds); 9] = [
        ("I2: an end never changes", |_, world| {
            world.done == world.seen.first_end
        }),
        ("I3: who succeeded has its pictures", |_, world| {
            let succeeded = matches!(world.done, Some(End::By(_, Ending::Succeeded)));
            !succeeded || world.pictures
        }),
        (PICTURES, |life, world| {
            let succeeded = matches!(world.done, Some(End::By(_, Ending::Succeeded)));
            let any_died = world.left.deaths < life.mishaps.deaths;
            !world.pictures || succeeded || any_died || !world.is_over()
        }),
        ("I4: acknowledged only after the end", |_, world| {
            !world.seen.acknowledged_before_the_end
        }),
        ("what a canceller was told holds", |_, world| {
            match world.canceller {
                Canceller::Told(end) => world.done == Some(end),
                Canceller::Waits => true,
            }
        }),
        (ATTEMPTS, |_, world| {
            u32::from(world.seen.runs) <= MAX_ATTEMPTS + u32::from(world.seen.handed_back)
        }),
        (NEWEST_STATE, |_, world| {
            let stands = world.stands.map_or(0, |stands| stands.run);
            stands == world.seen.runs
        }),
        (CHECKPOINT, |_, world| {
            let named = world.stands.and_then(|stands| stands.checkpoint);
            world.done.is_some() || named.is_none_or(|one| world.checkpoints & one.bit() != 0)
        }),
        (
            "a task that has not ended is in its lane or in WORK",
            |_, world| {
                let in_lane = world.dispatcher != crate::world::Dispatcher::Acknowledged;
                world.done.is_some() || in_lane || world.work.is_some()
            },
        ),
    ];
    let sometimes: [(&'static str, Holds); 6] = [
        ("a task succeeds", |_, world| {
            world.is_over() && matches!(world.done, Some(End::By(_, Ending::Succeeded)))
        }),
        ("a task fails", |_, world| {
            world.is_over() && matches!(world.done, Some(End::By(_, Ending::Failed)))
        }),
        ("a task is given up", |_, world| {
            world.is_over() && matches!(world.done, Some(End::By(_, Ending::GivenUp)))
        }),
        (
            "a task whose pictures no store takes is given up",
            |_, world| {
                let early = u32::from(world.seen.runs) < MAX_ATTEMPTS;
                early && matches!(world.done, Some(End::By(_, Ending::GivenUp)))
            },
        ),
        ("a task is cancelled", |_, world| {
            world.is_over() && world.done == Some(End::Cancelled)
        }),
        ("a run goes on from another's checkpoint", |_, world| {
            let stands = world.stands;
            stands.is_some_and(|s| s.running && s.checkpoint.is_some_and(|c| c.run < s.run))
        }),
    ];
    let always = always.map(|(name, holds)| Property::always(name, holds));
    let sometimes = sometimes.map(|(name, holds)| Property::sometimes(name, holds));
    always.into_iter().chain(sometimes).collect()
}
