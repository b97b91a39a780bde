//! Writes that are kept out by another one that is on its way.
//!
//! A cluster stores what most of its servers have. Until then a second write that names the same subjects in what it expects, or goes by the same
//! message id, is refused, with a code of its own. That says nothing of what will be there: the first one may still fail. So the second is
//! offered again, a few times, until the stream has stored it or says what there is.

use std::error::Error;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;

/// How often a write is offered again.
const TRIES: u32 = 8;
/// Before the first of these; each pause is twice the one before, 2.55 s in all.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// What comes of a write that is offered again while another that is on its way keeps it out.
pub(crate) async fn until_settled<T, E, F>(mut write: impl FnMut() -> F) -> Result<T, E>
where
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut pauses = pauses();
    loop {
        let error = match write().await {
            Ok(written) => return Ok(written),
            Err(error) => error,
        };
        match pauses.next() {
            Some(pause) if is_why(&error) => tokio::time::sleep(pause).await,
            _ => return Err(error),
        }
    }
}

/// Whether a write was refused for another that is on its way. It is not stored then, for certain.
fn is_why(error: &(dyn Error + 'static)) -> bool {
    matches!(
        crate::refusal(error),
        Some(
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
                | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT
        )
    )
}

/// How long to wait before each further try.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..TRIES).map(|tried| FIRST_PAUSE * 2u32.pow(tried))
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream;
    use bytes::Bytes;

    use super::*;
    use crate::scratch::{event, two_writers};
    use crate::{Appended, BrokerError, Bucket, EventLog, Manner, NewEvent};

    /// Encounters of two writers in one test.
    const ROUNDS: usize = 100;

    #[test]
    fn a_write_in_flight_is_told_from_what_is_stored_however_deep_its_code_lies() {
        let refused = |code: u64| {
            let text =
                format!(r#"{{"code":400,"err_code":{code},"description":"wrong last sequence"}}"#);
            serde_json::from_str::<jetstream::Error>(&text).unwrap()
        };
        for code in [10158, 10164] {
            assert!(is_why(&BrokerError::request("writing")(refused(code))));
        }
        assert!(!is_why(&BrokerError::request("writing")(refused(10071))));
        assert!(!is_why(&BrokerError::request("writing")("no answer")));
    }

    /// Of two, one has made it and the other hears of that one.
    fn one_counts(one: &Appended, two: &Appended) {
        let heard = match (one, two) {
            (Appended::Created, Appended::Exists(heard)) => (heard, "one"),
            (Appended::Exists(heard), Appended::Created) => (heard, "two"),
            both => panic!("{both:?}"),
        };
        assert_eq!(heard.0, heard.1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_two_who_create_one_thing_at_once_in_a_cluster_one_does_and_the_other_hears_of_it() {
        let (_cluster, one, two) = two_writers().await;
        for round in 0..ROUNDS {
            let task = round.to_string();
            let (ones, twos) = (event(&task, "one"), event(&task, "two"));
            let (by_one, by_two) = tokio::join!(one.create(&ones), two.create(&twos));
            one_counts(&by_one.unwrap(), &by_two.unwrap());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_two_groups_at_once_in_a_cluster_one_has_what_is_in_both_and_each_all_of_its_own() {
        let (_cluster, one, two) = two_writers().await;
        for round in 0..ROUNDS / 4 {
            let group = |name: &'static str| -> Vec<NewEvent> {
                let own = (0..8).map(|number| event(&format!("{round}-{name}-{number}"), name));
                let both = event(&format!("{round}-both"), name);
                own.chain([both]).collect()
            };
            let (mut by_one, mut by_two) = tokio::join!(
                one.create_each(group("one"), Manner::Together),
                two.create_each(group("two"), Manner::Together),
            );
            let both = (by_one.pop().unwrap(), by_two.pop().unwrap());
            one_counts(&both.0.unwrap(), &both.1.unwrap());
            for own in by_one.into_iter().chain(by_two) {
                assert_eq!(own.unwrap(), Appended::Created);
            }
        }
    }

    /// The bucket that both have.
    async fn bucket(of: &EventLog) -> Bucket<String> {
        let broker = &of.broker;
        let opened = broker.patiently(|| broker.bucket("KEPT", Duration::ZERO));
        opened.await.unwrap()
    }

    /// Of two, one has written and the other hears that it was not what it thought.
    fn one_wrote<T: std::fmt::Debug>(
        one: Result<T, BrokerError>,
        two: Result<T, BrokerError>,
    ) -> T {
        match (one, two) {
            (Ok(written), Err(BrokerError::Conflict { .. }))
            | (Err(BrokerError::Conflict { .. }), Ok(written)) => written,
            both => panic!("{both:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_two_who_write_a_key_of_a_bucket_at_once_in_a_cluster_one_does_and_the_other_hears_of_it()
     {
        let (_cluster, one, two) = two_writers().await;
        let broker = one.broker.clone();
        let (one, two) = (bucket(&one).await, bucket(&two).await);
        let (by_one, by_two) = ("one".to_owned(), "two".to_owned());
        // It has a leader by now.
        let ready = broker.patiently(|| one.put("ready", &by_one));
        ready.await.unwrap();
        for round in 0..ROUNDS / 2 {
            let key = round.to_string();
            let created = tokio::join!(one.create(&key, &by_one), two.create(&key, &by_two));
            let first = one_wrote(created.0, created.1);
            let updated = tokio::join!(
                one.update(&key, &by_one, first),
                two.update(&key, &by_two, first),
            );
            let second = one_wrote(updated.0, updated.1);
            let deleted = tokio::join!(one.delete_at(&key, second), two.delete_at(&key, second));
            one_wrote(deleted.0, deleted.1);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_two_who_queue_one_piece_of_work_at_once_in_a_cluster_one_does_and_the_other_hears_of_it()
     {
        let (_cluster, one, two) = two_writers().await;
        let queues = [one, two].map(|log| log.broker.queue("TEST"));
        for round in 0..ROUNDS / 2 {
            let id = round.to_string();
            // Known by where it is alone, and by its id as well.
            for (id, kind) in [(None, "place"), (Some(&*id), "id")] {
                let subject = format!("test.{round}.{kind}");
                let queued = queues.each_ref().map(|queue| {
                    let work = Bytes::from_static(b"work");
                    queue.create(&subject, id, work)
                });
                let queued = futures::future::join_all(queued).await;
                let queued: Vec<bool> = queued.into_iter().map(Result::unwrap).collect();
                assert!(queued[0] != queued[1], "{kind} {round}: {queued:?}");
            }
        }
    }
}
