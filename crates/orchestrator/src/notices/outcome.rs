//! What a producer hears on `inkstone.outcome.<tenant>.<task>`, in the form in which it spoke.
//!
//! No tenant has more of the stream than its share: what is over it is purged, its oldest first, now and then. And refusals of messages of
//! which nobody knows whose they are share one subject a tenant, so that whoever guesses ids can push out none of what was told of tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use contract::json::OutcomeJson;
use contract::v1::Outcome;
use contract::words::{EVENTS, word};
use messaging::{Broker, BrokerError, Outgoing, WorkQueue};
use prost::Message as _;

use crate::exchange;
use crate::settings::NoticeSettings;

/// In the place of a task's id, for what nobody has proven to be the tenant's. No id is such.
const UNPROVEN: &str = "unproven";
/// A tenant's share is looked at each time that it has been told one in so many of it.
const LOOKS: u32 = 10;
/// Tenants whose outcomes are counted. Beyond that counting begins anew.
const MAX_TENANTS: usize = 10_000;

/// Tells outcomes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outcomes {
    queue: WorkQueue,
    /// In front of the paths of pictures.
    public_url: String,
    /// Outcomes that one tenant may have.
    share: u32,
    told: Arc<Mutex<Told>>,
}

/// How many each tenant was told since its share was looked at.
#[derive(Debug, Default)]
struct Told(HashMap<String, u32>);

impl Told {
    /// Counts one; whether it is time to look.
    fn count(&mut self, tenant: &str, share: u32) -> bool {
        if !self.0.contains_key(tenant) {
            if self.0.len() >= MAX_TENANTS {
                self.0.clear();
            }
            self.0.insert(tenant.to_owned(), 0);
        }
        let Some(told) = self.0.get_mut(tenant) else {
            return false;
        };
        *told += 1;
        let look = *told > share / LOOKS;
        if look {
            *told = 0;
        }
        look
    }
}

/// Who hears of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) tenant: &'a str,
    /// Whether it speaks JSON.
    pub(crate) json: bool,
    /// Whether what it is told of is its own for certain.
    pub(crate) proven: bool,
}

impl Outcomes {
    pub(crate) fn new(broker: &Broker, settings: &NoticeSettings) -> Self {
        Self {
            queue: broker.queue(exchange::OUTCOMES),
            public_url: settings.public_url.clone(),
            share: settings.max_outcomes_per_tenant,
            told: Arc::default(),
        }
    }

    /// Stores an outcome; the same one again within two minutes is stored once.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub(crate) async fn tell(
        &self,
        target: Target<'_>,
        outcome: &Outcome,
    ) -> Result<(), BrokerError> {
        let message = message(target, outcome, &self.public_url);
        self.queue.send(message).await?;
        let look = {
            // After a panic it still holds whole numbers.
            let mut told = self.told.lock().unwrap_or_else(|e| e.into_inner());
            told.count(target.tenant, self.share)
        };
        if look {
            self.trim(target.tenant).await;
        }
        Ok(())
    }

    /// Lets go of what a tenant has beyond its share.
    async fn trim(&self, tenant: &str) {
        let all = format!("inkstone.outcome.{tenant}.*");
        match self.queue.keep_last(&all, self.share.into()).await {
            Ok(0) => {}
            Ok(gone) => {
                tracing::info!(tenant, gone, "outcomes over the tenant's share are let go");
            }
            // The next look finds them.
            Err(error) => tracing::debug!(%error, "a tenant's outcomes were not looked at"),
        }
    }
}

fn message(target: Target<'_>, outcome: &Outcome, public_url: &str) -> Outgoing {
    let event = word(EVENTS, outcome.r#type()).unwrap_or_default();
    let (task, sequence) = (&outcome.task_id, outcome.sequence);
    let about = if target.proven { task } else { UNPROVEN };
    let (kind, payload): (_, Bytes) = if target.json {
        let json = OutcomeJson::new(outcome, public_url).to_vec();
        ("application/json", json.into())
    } else {
        ("application/protobuf", outcome.encode_to_vec().into())
    };
    Outgoing {
        subject: format!("inkstone.outcome.{}.{about}", target.tenant),
        id: Some(format!("{task}-{event}-{sequence}")),
        headers: vec![
            ("Content-Type", kind.to_owned()),
            ("Inkstone-Event", event.to_owned()),
        ],
        payload,
    }
}

#[cfg(test)]
mod tests {
    use contract::v1::{Refusal, TaskEvent, outcome};
    use messaging::BrokerSettings;
    use nats_server::NatsServer;

    use super::*;

    #[test]
    fn an_outcome_is_told_in_the_form_of_the_submission() {
        let refused = Outcome {
            r#type: TaskEvent::Refused.into(),
            task_id: "t".to_owned(),
            reference: "order-1".to_owned(),
            sequence: 7,
            at: None,
            result: Some(outcome::Result::Refused(Refusal {
                code: "invalid_argument".to_owned(),
                field: "steps".to_owned(),
                ..Refusal::default()
            })),
        };
        let to = |json| {
            let target = Target {
                tenant: "acme",
                json,
                proven: true,
            };
            message(target, &refused, "")
        };
        let (json, protobuf) = (to(true), to(false));
        assert_eq!(json.subject, "inkstone.outcome.acme.t");
        assert_eq!(json.id.as_deref(), Some("t-task.refused-7"));
        assert_eq!(Outcome::decode(protobuf.payload).unwrap(), refused);
        let read: serde_json::Value = serde_json::from_slice(&json.payload).unwrap();
        assert_eq!(read["type"], "task.refused");
        assert_eq!(
            (&read["reference"], &read["sequence"]),
            (&"order-1".into(), &7.into())
        );
        assert_eq!(read["error"]["field"], "steps");
        assert_eq!(read["task"], serde_json::Value::Null);
    }

    #[tokio::test]
    async fn no_tenant_has_more_than_its_share_and_guessed_ids_push_out_nothing() {
        let server = NatsServer::scratch().unwrap();
        let settings = BrokerSettings::new(server.url(), "10s".parse().unwrap());
        let broker = Broker::connect(&settings, "test").await.unwrap();
        let mut settings: crate::Settings = settings::load(None, &[]).unwrap();
        settings.notices.max_outcomes_per_tenant = 50;
        let (intake, notices) = (&settings.intake, &settings.notices);
        exchange::ensure_streams(&broker, intake, notices, &settings.webhooks)
            .await
            .unwrap();
        let outcomes = Outcomes::new(&broker, notices);
        let tell = async |tenant, number: u64, task: &str, proven| {
            let outcome = Outcome {
                r#type: TaskEvent::Refused.into(),
                task_id: task.to_owned(),
                sequence: number,
                ..Outcome::default()
            };
            let target = Target {
                tenant,
                json: false,
                proven,
            };
            outcomes.tell(target, &outcome).await.unwrap();
        };
        tell("quiet", 1, "t", true).await;
        for number in 0..30 {
            tell("quiet", 100 + number, "t", false).await;
        }
        for number in 0..200 {
            tell("busy", number, &format!("t-{number}"), true).await;
        }
        let depth = async |filter: &str| {
            let depths = outcomes.queue.depth(filter).await.unwrap();
            depths.iter().map(|(_, messages)| messages).sum::<usize>()
        };
        assert_eq!(depth("inkstone.outcome.quiet.t").await, 1);
        assert_eq!(depth("inkstone.outcome.quiet.unproven").await, 8);
        let busy = depth("inkstone.outcome.busy.*").await;
        assert!((50..=56).contains(&busy), "{busy}");
        assert_eq!(depth("inkstone.outcome.busy.t-199").await, 1);
        assert_eq!(depth("inkstone.outcome.busy.t-0").await, 0);
    }

    #[test]
    fn tenants_that_are_counted_are_bounded() {
        let mut told = Told::default();
        for number in 0..3 * MAX_TENANTS {
            told.count(&format!("t-{number}"), 10);
            assert!(told.0.len() <= MAX_TENANTS);
        }
    }
}
