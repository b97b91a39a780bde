//! Answering many calls that came in one; see `gather` for who sends them.

use std::panic::AssertUnwindSafe;

use contract::{ErrorCode, Failure};
use futures::FutureExt as _;
use futures::stream::{self, FuturesUnordered, Stream, StreamExt as _};
use tracing::Instrument as _;

use crate::gather::{Asked, MAX_GROUP};
use crate::{deadline, metrics};

/// Answers each call as soon as its answer is there, by its number; those that are there together go together. Each is under
/// its own caller's deadline and in its own trace, in a span like that of a call by itself. It returns once the first answers are there, so
/// that a service that hangs is seen to hang.
///
/// # Errors
/// When there are no calls, or more than [`MAX_GROUP`].
pub async fn each<Q, A, F, C>(
    path: &'static str,
    calls: Vec<Asked<Q>>,
    answer: C,
) -> Result<impl Stream<Item = Vec<(u32, Result<A, Failure>)>> + Send + use<Q, A, F, C>, Failure>
where
    C: Fn(Q) -> F,
    F: Future<Output = Result<A, Failure>> + Send + 'static,
    A: Send + 'static,
{
    if calls.is_empty() || calls.len() > MAX_GROUP {
        let text = format!("calls must be 1 to {MAX_GROUP}, not {}", calls.len());
        return Err(Failure::invalid("calls", text));
    }
    // Sent once more, the calls say how long their callers waited when it was sent first.
    let spent = deadline::spent();
    let work = calls.into_iter().zip(0_u32..).map(|(asked, number)| {
        let span = tracing::info_span!("grpc", "otel.kind" = "server", path);
        telemetry::continue_trace(&span, |name| {
            (name == telemetry::TRACEPARENT).then_some(asked.traceparent.as_str())
        });
        let limit = asked.timeout.saturating_sub(spent);
        // In a box: what goes around it, and into the set of all, would copy the whole of it each time.
        let work = answer(asked.question).boxed();
        // One that panics takes none of the others with it.
        let work = AssertUnwindSafe(work).catch_unwind();
        let within = deadline::within(
            limit,
            tokio::time::timeout(limit, async move {
                // What comes too late is not begun.
                if limit.is_zero() {
                    std::future::pending::<()>().await;
                }
                work.await
            }),
        );
        let whole = async move {
            let answer = match within.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => {
                    tracing::error!(path, "a call panicked");
                    Err(Failure::new(
                        ErrorCode::Internal,
                        "a part of the platform failed",
                    ))
                }
                Err(_) => {
                    metrics::too_late();
                    let text = format!("the caller's deadline of {limit:?} has passed");
                    Err(Failure::new(ErrorCode::DeadlineExceeded, text))
                }
            };
            (number, answer)
        };
        whole.instrument(span)
    });
    let work: FuturesUnordered<_> = work.collect();
    let mut answers = work.ready_chunks(MAX_GROUP);
    let first = answers.next().await;
    Ok(stream::iter(first).chain(answers))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt as _;

    use super::*;

    fn asked(question: u64) -> Asked<u64> {
        Asked {
            question,
            timeout: Duration::from_secs(2),
            traceparent: String::new(),
        }
    }

    async fn sleeps(seconds: u64) -> Result<u64, Failure> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn answers_come_as_they_are_ready_and_together_when_they_are() {
        let calls = [1, 0, 9, 0].map(asked).to_vec();
        let answers = each("test", calls, sleeps).await.unwrap();
        let answers: Vec<_> = answers.collect().await;
        let numbers = |chunk: &Vec<(u32, Result<u64, Failure>)>| {
            let mut numbers: Vec<u32> = chunk.iter().map(|(number, _)| *number).collect();
            numbers.sort_unstable();
            numbers
        };
        let order: Vec<_> = answers.iter().map(numbers).collect();
        assert_eq!(order, [vec![1, 3], vec![0], vec![2]]);
        let (_, late) = &answers[2][0];
        let late = late.as_ref().unwrap_err();
        assert_eq!(late.code, ErrorCode::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_call_that_panics_takes_no_other_with_it() {
        let calls = [0, 1].map(asked).to_vec();
        let answers = each("test", calls, async |question| {
            assert!(question == 0, "as the test wants it");
            Ok(question)
        });
        let answers: Vec<_> = answers.await.unwrap().collect().await;
        let mut answers: Vec<_> = answers.into_iter().flatten().collect();
        answers.sort_by_key(|(number, _)| *number);
        let [(0, Ok(0)), (1, Err(failure))] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert_eq!(failure.code, ErrorCode::Internal);
    }

    #[tokio::test]
    async fn a_group_has_a_limit() {
        for count in [0, MAX_GROUP + 1] {
            let calls = vec![asked(0); count];
            let refused = each("test", calls, sleeps).await.err().unwrap();
            assert!(refused.message.contains("1 to 64"), "{}", refused.message);
        }
    }
}
