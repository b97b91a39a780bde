//! A pull that stands: what is asked for at once and comes one by one.

use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use crate::{Broker, BrokerError, Delivery};

/// Messages that come one by one, see [`Puller::coming`](crate::Puller::coming).
pub struct Coming {
    broker: Broker,
    messages: Pin<Box<pull::Batch>>,
    ack_wait: Duration,
    /// A limit of our own: the server's last word may be lost with the connection.
    until: Instant,
}

impl Coming {
    pub(crate) fn new(
        broker: Broker,
        messages: pull::Batch,
        ack_wait: Duration,
        until: Instant,
    ) -> Self {
        Self {
            broker,
            messages: Box::pin(messages),
            ack_wait,
            until,
        }
    }

    /// The next one; none when all have come, or no others within a few seconds.
    ///
    /// # Errors
    /// When the broker says that no others will come this way. Those that came are not touched by that.
    pub async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        let next = tokio::time::timeout_at(self.until, self.messages.next()).await;
        match next {
            Ok(Some(Ok(message))) => {
                let delivery = Delivery::new(self.broker.clone(), message, self.ack_wait);
                Ok(Some(delivery))
            }
            Ok(Some(Err(error))) => Err(BrokerError::request("pulling work")(error)),
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// Asks for no others; what has come so far. What is on its way comes again after its ack wait, here or elsewhere.
    pub fn leave(mut self) -> Vec<Delivery> {
        let mut come = Vec::new();
        while let Some(Some(next)) = self.messages.next().now_or_never() {
            if let Ok(message) = next {
                come.push(Delivery::new(self.broker.clone(), message, self.ack_wait));
            }
        }
        come
    }
}
