//! The streams by which producers, receivers of webhooks and we reach each other: INTAKE in, OUTCOMES and WEBHOOKS out, and LISTENERS with those
//! who are to hear of an end and stand in no submission (`notices/late.rs`). All are bounded; for each tenant too by the broker, but OUTCOMES
//! by who tells them (`notices/outcome.rs`).

use std::time::Duration;

use messaging::{Broker, BrokerError, RetentionPolicy, StreamSpec};
use settings::ByteSize;

use crate::settings::{IntakeSettings, NoticeSettings, WebhookSettings};

pub(crate) const INTAKE: &str = "INTAKE";
pub(crate) const OUTCOMES: &str = "OUTCOMES";
pub(crate) const WEBHOOKS: &str = "WEBHOOKS";
pub(crate) const LISTENERS: &str = "LISTENERS";

/// Late listeners that may wait, in all and of one tenant. Each is a few hundred bytes, so no disk is set aside for them.
pub(crate) const MAX_LISTENERS: i64 = 20_000;
const LISTENERS_A_TENANT: i64 = 2000;

/// The broker's own memory of producers' message ids, as short as it lets it be. It is the whole stream's: with a longer one, a tenant
/// who guesses another's next id could make it vanish. What makes a submission one is its task's id.
const INTAKE_DUPLICATES: Duration = Duration::from_millis(100);
/// Within which one end is told once, though it is handled twice.
const DUPLICATES: Duration = Duration::from_secs(120);
/// Outcomes that one task can have: some refusals beside its acceptance and its end.
const OUTCOMES_A_TASK: i64 = 8;

/// Makes the four streams, or brings them to these settings.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn ensure_streams(
    broker: &Broker,
    intake: &IntakeSettings,
    notices: &NoticeSettings,
    webhooks: &WebhookSettings,
) -> Result<(), BrokerError> {
    for spec in specs(intake, notices, webhooks) {
        broker.ensure_stream(&spec).await?;
    }
    Ok(())
}

fn specs(
    intake: &IntakeSettings,
    notices: &NoticeSettings,
    webhooks: &WebhookSettings,
) -> [StreamSpec; 4] {
    let size = |size: ByteSize| i64::try_from(size.bytes()).unwrap_or(i64::MAX);
    let message = i32::try_from(intake.max_message_size.bytes()).unwrap_or(i32::MAX);
    let inbound = StreamSpec {
        name: INTAKE,
        subjects: &["inkstone.intake.*"],
        retention: RetentionPolicy::WorkQueue,
        max_messages: i64::from(intake.max_messages),
        max_messages_per_subject: i64::from(intake.max_messages_per_tenant),
        shares: true,
        max_message_size: message,
        max_age: intake.max_age.duration(),
        max_bytes: size(intake.max_size),
        refuse_when_full: true,
        batches: false,
        duplicate_window: INTAKE_DUPLICATES,
        republish: None,
    };
    let outcomes = StreamSpec {
        name: OUTCOMES,
        subjects: &["inkstone.outcome.*.*"],
        retention: RetentionPolicy::Limits,
        max_messages: i64::from(notices.max_outcomes),
        max_messages_per_subject: OUTCOMES_A_TASK,
        shares: false,
        max_message_size: -1,
        max_age: notices.outcome_retention.duration(),
        max_bytes: size(notices.outcomes_max_size),
        // Whoever does not fetch them must not hold up others' tasks.
        refuse_when_full: false,
        batches: false,
        duplicate_window: DUPLICATES.min(notices.outcome_retention.duration()),
        republish: None,
    };
    let hooks = StreamSpec {
        name: WEBHOOKS,
        subjects: &["inkstone.webhook.*"],
        retention: RetentionPolicy::WorkQueue,
        max_messages: -1,
        max_messages_per_subject: i64::from(webhooks.max_waiting_per_tenant),
        shares: true,
        max_message_size: -1,
        // Given up by whoever delivers, with a letter in DEAD, and by nobody while none is there.
        max_age: Duration::ZERO,
        max_bytes: size(webhooks.max_size),
        refuse_when_full: true,
        batches: false,
        duplicate_window: DUPLICATES,
        republish: None,
    };
    [inbound, outcomes, hooks, listeners()]
}

fn listeners() -> StreamSpec {
    StreamSpec {
        name: LISTENERS,
        subjects: &["inkstone.listener.*"],
        retention: RetentionPolicy::WorkQueue,
        max_messages: MAX_LISTENERS,
        max_messages_per_subject: LISTENERS_A_TENANT,
        shares: true,
        max_message_size: -1,
        // Each goes with its task, however long the log keeps that.
        max_age: Duration::ZERO,
        max_bytes: -1,
        refuse_when_full: true,
        batches: false,
        duplicate_window: DUPLICATES,
        republish: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_orchestrator_is_to_tell_waits_for_one_however_long_none_is_there() {
        let settings: crate::Settings = settings::load(None, &[]).unwrap();
        let all = specs(&settings.intake, &settings.notices, &settings.webhooks);
        for name in [WEBHOOKS, LISTENERS] {
            let stream = all.iter().find(|stream| stream.name == name).unwrap();
            assert!(stream.max_age.is_zero(), "{name}");
            assert!(stream.refuse_when_full, "{name} has a bound");
        }
    }
}
