//! What a producer hears on `inkstone.outcome.<tenant>.<task>`, in the form in which it spoke.

use bytes::Bytes;
use contract::json::OutcomeJson;
use contract::v1::Outcome;
use contract::words::{EVENTS, word};
use messaging::{Broker, BrokerError, Outgoing, WorkQueue};
use prost::Message as _;

use crate::exchange;

/// Tells outcomes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outcomes {
    queue: WorkQueue,
    /// In front of the paths of pictures.
    public_url: String,
}

/// Who hears of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) tenant: &'a str,
    /// Whether it speaks JSON.
    pub(crate) json: bool,
}

impl Outcomes {
    pub(crate) fn new(broker: &Broker, public_url: &str) -> Self {
        Self {
            queue: broker.queue(exchange::OUTCOMES),
            public_url: public_url.to_owned(),
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
        self.queue.send(message).await.map(drop)
    }
}

fn message(target: Target<'_>, outcome: &Outcome, public_url: &str) -> Outgoing {
    let event = word(EVENTS, outcome.r#type()).unwrap_or_default();
    let (task, sequence) = (&outcome.task_id, outcome.sequence);
    let (kind, payload): (_, Bytes) = if target.json {
        let json = OutcomeJson::new(outcome, public_url).to_vec();
        ("application/json", json.into())
    } else {
        ("application/protobuf", outcome.encode_to_vec().into())
    };
    Outgoing {
        subject: format!("inkstone.outcome.{}.{task}", target.tenant),
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
            let tenant = "acme";
            message(Target { tenant, json }, &refused, "")
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
}
