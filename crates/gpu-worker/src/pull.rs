//! Pulling work for one model version, while there is room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lifecycle::Tasks;
use messaging::{BrokerError, Puller};
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
    // A pull that is dropped half-way leaves what is on its way to the ack wait at worst.
    tokio::select! {
        () = end.cancelled() => {}
        _ = worker.hangs() => {}
        () = worker.engine.gone() => {}
        () = keep_pulling(worker, tasks, served, &puller) => {}
    }
}

async fn keep_pulling(worker: &Arc<Worker>, tasks: &Tasks, served: &Arc<Served>, puller: &Puller) {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let _pulled = worker.pulled.enter();
    run::hear_time(worker).await;
    loop {
        // Without keeping the room: a version that has nothing to do must not hold it from one that has.
        worker.slots.room().await;
        let pulled = match worker.pulled.is_alone() {
            true => take_as_they_come(worker, tasks, served, puller).await,
            false => take_one_and_more(worker, tasks, served, puller).await,
        };
        match pulled {
            Ok(()) => backoff.reset(),
            Err(error) => {
                let pause = backoff.pause();
                tracing::debug!(error = chain(&error), ?pause, "pulling again");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Nobody else takes the room: all of it is asked for at once, and each dispatch is begun when it comes, without a round trip for it.
async fn take_as_they_come(
    worker: &Arc<Worker>,
    tasks: &Tasks,
    served: &Arc<Served>,
    puller: &Puller,
) -> Result<(), BrokerError> {
    let room = worker.slots.free().clamp(1, MOST_AT_ONCE);
    let mut coming = puller.coming(room).await?;
    while let Some(delivery) = coming.next().await? {
        // A task that runs alone may have the room, or another version be served meanwhile.
        if worker.slots.free() > 0 && worker.pulled.is_alone() {
            take(worker, tasks, served, delivery).await;
            continue;
        }
        // Before anything is given back, or the broker would hand it out for what was asked for here.
        let come = coming.leave();
        for delivery in std::iter::once(delivery).chain(come) {
            take(worker, tasks, served, delivery).await;
        }
        break;
    }
    Ok(())
}

/// Waits for one, and takes what else is there.
async fn take_one_and_more(
    worker: &Arc<Worker>,
    tasks: &Tasks,
    served: &Arc<Served>,
    puller: &Puller,
) -> Result<(), BrokerError> {
    if let Some(first) = puller.one().await? {
        // Before more are asked for: that takes a round trip.
        take(worker, tasks, served, first).await;
        take_more(worker, tasks, served, puller).await;
    }
    Ok(())
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

/// How many versions are pulled for.
#[derive(Debug, Default)]
pub(crate) struct Pulled(AtomicUsize);

/// One of them, until this is dropped.
struct Entered<'a>(&'a Pulled);

impl Pulled {
    fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(self)
    }

    fn is_alone(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
