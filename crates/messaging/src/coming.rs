//! A pull that stands: what is asked for at once and comes one by one.

use std::pin::Pin;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use futures::{FutureExt as _, StreamExt as _};

use crate::{Broker, BrokerError, Delivery};

/// Looks in an ack wait at whether something has come.
const LOOKS: u32 = 20;
/// Within this, who goes on after it was stopped reads from its connection what has come meanwhile, also on a machine that has other work.
const READ_WITHIN: Duration = Duration::from_millis(200);

/// Messages that come one by one, see [`Puller::coming`](crate::Puller::coming).
pub struct Coming {
    broker: Broker,
    messages: Pin<Box<pull::Batch>>,
    ack_wait: Duration,
    /// A limit of our own: the server's last word may be lost with the connection.
    until: tokio::time::Instant,
    looks: Looks,
}

impl Coming {
    /// `asked`: when, before which nothing can have come.
    pub(crate) fn new(
        broker: Broker,
        messages: pull::Batch,
        ack_wait: Duration,
        until: tokio::time::Instant,
        asked: Instant,
    ) -> Self {
        Self {
            broker,
            messages: Box::pin(messages),
            ack_wait,
            until,
            looks: Looks::new(ack_wait / LOOKS, asked),
        }
    }

    /// The next one; none when all have come, or no others within a few seconds.
    ///
    /// # Errors
    /// When the broker says that no others will come this way. Those that came are not touched by that.
    pub async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        loop {
            let next = match self.messages.next().now_or_never() {
                Some(next) => Ok(next),
                None => {
                    self.looks.found_nothing(Instant::now());
                    let again = tokio::time::Instant::now() + self.looks.every;
                    tokio::time::timeout_at(again.min(self.until), self.messages.next()).await
                }
            };
            match next {
                Ok(Some(Ok(message))) => return Ok(Some(self.delivery(message))),
                Ok(Some(Err(error))) => return Err(BrokerError::request("pulling work")(error)),
                Ok(None) => return Ok(None),
                Err(_) if tokio::time::Instant::now() >= self.until => return Ok(None),
                Err(_) => {}
            }
        }
    }

    /// Asks for no others; what has come so far. What is on its way comes again after its ack wait, here or elsewhere.
    pub fn leave(mut self) -> Vec<Delivery> {
        let mut come = Vec::new();
        while let Some(Some(next)) = self.messages.next().now_or_never() {
            if let Ok(message) = next {
                come.push(self.delivery(message));
            }
        }
        come
    }

    fn delivery(&self, message: jetstream::Message) -> Delivery {
        let since = self.looks.since();
        Delivery::new(self.broker.clone(), message, self.ack_wait, since)
    }
}

/// When nothing had come: what does later may have lain here since then, where the process was stopped, or nobody asked for it.
#[derive(Debug)]
struct Looks {
    every: Duration,
    /// How long after the last look the next one counts.
    apart: Duration,
    last: Instant,
    before: Instant,
}

impl Looks {
    fn new(every: Duration, asked: Instant) -> Self {
        Self {
            every,
            apart: every,
            last: asked,
            before: asked,
        }
    }

    fn found_nothing(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.last);
        if since < self.apart {
            return;
        }
        // So late a look is one after a stop, or after nobody asked: what came meanwhile may still lie in the connection for longer than `every`.
        let is_late = since > 2 * self.apart;
        self.apart = match is_late {
            true => self.every.max(READ_WITHIN),
            false => self.every,
        };
        (self.before, self.last) = (self.last, now);
    }

    /// The last look but one: at the last one what came while the process was stopped may not have been read from the connection.
    fn since(&self) -> Instant {
        self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_stop_may_have_lain_since_before_it() {
        let (every, asked) = (Duration::from_secs(1), Instant::now());
        let mut looks = Looks::new(every, asked);
        assert_eq!(looks.since(), asked);
        looks.found_nothing(asked + every);
        looks.found_nothing(asked + 2 * every);
        assert_eq!(looks.since(), asked + every);
        // It was stopped; more than one look in the same moment are one.
        let goes_on = asked + 60 * every;
        looks.found_nothing(goes_on);
        looks.found_nothing(goes_on + every / 10);
        assert_eq!(looks.since(), asked + 2 * every);
        looks.found_nothing(goes_on + every);
        assert_eq!(looks.since(), goes_on);
    }

    #[test]
    fn after_a_stop_there_is_time_to_read_from_the_connection_however_often_is_looked() {
        let (every, asked) = (Duration::from_millis(50), Instant::now());
        let mut looks = Looks::new(every, asked);
        looks.found_nothing(asked + every);
        looks.found_nothing(asked + 2 * every);
        let stopped = asked + 2 * every;
        let goes_on = asked + Duration::from_secs(60);
        looks.found_nothing(goes_on);
        for number in 1..4 {
            looks.found_nothing(goes_on + number * every);
            assert_eq!(looks.since(), stopped, "{number}");
        }
        looks.found_nothing(goes_on + READ_WITHIN);
        assert_eq!(looks.since(), goes_on);
        // And from there on as before.
        looks.found_nothing(goes_on + READ_WITHIN + every);
        assert_eq!(looks.since(), goes_on + READ_WITHIN);
    }
}
