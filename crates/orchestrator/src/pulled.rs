//! Deliveries of a queue, so many at once, each in a job of its own.

use std::sync::Arc;
use std::time::Duration;

use lifecycle::Tasks as ServiceTasks;
use messaging::{BrokerError, Delivery, Puller};
use tokio::sync::Semaphore;

/// Before a queue that could not be asked is asked again.
const PULL_AGAIN: Duration = Duration::from_millis(500);

/// Carries out what comes until the service stops. As many are pulled together as there is room for, so that what comes together can
/// go on together.
pub(crate) fn start<F>(
    service: &ServiceTasks,
    name: &'static str,
    puller: Puller,
    at_once: usize,
    carry_out: impl Fn(Delivery) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let stopping = service.stopping();
    let jobs = service.clone();
    service.critical(name, async move {
        tokio::select! {
            () = stopping => {}
            () = pull(&jobs, name, &puller, at_once, carry_out) => {}
        }
        Ok::<(), BrokerError>(())
    });
}

async fn pull<F>(
    jobs: &ServiceTasks,
    name: &'static str,
    puller: &Puller,
    at_once: usize,
    carry_out: impl Fn(Delivery) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(at_once));
    loop {
        let Ok(mut permits) = room.clone().acquire_owned().await else {
            return;
        };
        let more = u32::try_from(room.available_permits()).unwrap_or(0);
        if let Ok(more) = room.clone().try_acquire_many_owned(more) {
            permits.merge(more);
        }
        match puller.pull(permits.num_permits()).await {
            Ok(deliveries) => {
                for delivery in deliveries {
                    // No more than were asked for; if there were, they come again after their ack wait.
                    let Some(permit) = permits.split(1) else {
                        break;
                    };
                    let work = carry_out(delivery);
                    jobs.job(name, async move {
                        work.await;
                        drop(permit);
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, queue = name, "pulling again");
                drop(permits);
                tokio::time::sleep(PULL_AGAIN).await;
            }
        }
    }
}
