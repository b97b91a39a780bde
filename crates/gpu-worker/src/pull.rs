//! Pulling work for one model version, while there is room.

use std::sync::Arc;
use std::time::Duration;

use lifecycle::Tasks;
use messaging::Puller;
use tokio_util::sync::CancellationToken;

use crate::models::Served;
use crate::retry::{Backoff, Stopped, until_stopped};
use crate::run;
use crate::worker::Worker;
use lifecycle::chain;

/// Dispatches that one pull takes: another version's may take the room meanwhile, and then these go back.
const MOST_AT_ONCE: usize = 64;
/// Where a pull brought so many, others are likely to have come meanwhile: they are asked for at once, and with fewer the next one is waited for.
const MANY: usize = 4;
/// Pauses between pulls that fail.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Pulls until `end`; what was pulled goes on.
pub(crate) async fn pull(
    worker: &Arc<Worker>,
    tasks: &Tasks,
    served: &Arc<Served>,
    end: &CancellationToken,
) {
    // The stream is someone else's to make, and may not be there yet.
    let opened = until_stopped(end, "opening the work queue", || {
        worker
            .log
            .work_of(&served.name, &served.version, worker.ack_wait)
    });
    let puller = match opened.await {
        Ok(puller) => puller,
        Err(Stopped) => return,
    };
    // A pull that is dropped half-way leaves a message to the ack wait at worst.
    tokio::select! {
        () = end.cancelled() => {}
        _ = worker.hangs() => {}
        () = worker.engine.gone() => {}
        () = keep_pulling(worker, tasks, served, &puller) => {}
    }
}

async fn keep_pulling(worker: &Arc<Worker>, tasks: &Tasks, served: &Arc<Served>, puller: &Puller) {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        // Without keeping the room: a version that has nothing to do must not hold it from one that has.
        worker.slots.room().await;
        match puller.one().await {
            Ok(first) => {
                backoff.reset();
                if let Some(first) = first {
                    // Before more are asked for: that takes a round trip.
                    take(worker, tasks, served, first).await;
                    take_more(worker, tasks, served, puller).await;
                }
            }
            Err(error) => {
                let pause = backoff.pause();
                tracing::debug!(error = chain(&error), ?pause, "pulling again");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Takes what else is there, while there is room and much comes.
async fn take_more(worker: &Arc<Worker>, tasks: &Tasks, served: &Arc<Served>, puller: &Puller) {
    loop {
        let room = worker.slots.free().min(MOST_AT_ONCE);
        let more = puller.more(room).await;
        let came = more.len();
        for delivery in more {
            take(worker, tasks, served, delivery).await;
        }
        if came < MANY {
            return;
        }
    }
}

/// Carries a delivery out, or gives it back when another version's took the last room meanwhile, or a task waits to run
/// alone.
async fn take(
    worker: &Arc<Worker>,
    tasks: &Tasks,
    served: &Arc<Served>,
    delivery: messaging::Delivery,
) {
    match worker.slots.take() {
        Some(room) => {
            let (worker, served) = (Arc::clone(worker), Arc::clone(served));
            tasks.job("task", async move {
                run::deliver(worker, served, delivery).await;
                drop(room);
            });
        }
        None => {
            if let Err(error) = delivery.give_back(Duration::ZERO).await {
                tracing::debug!(error = chain(&error), "comes again after the ack wait");
            }
        }
    }
}
