//! How many of a repeated field one gRPC message may have, counted as its bytes arrive and before anyone decodes it.
//!
//! Two bytes, such as `0a 00`, are a message inside a message, which takes hundreds in memory: what a message takes is not bounded by its
//! length alone. Each repeated field that a caller can send, the fewest bytes of one, what one takes, and what bounds them:
//!
//! | calls | field | bytes | in memory | bounded by |
//! |---|---|---|---|---|
//! | `SubmitBatch` | `tasks` | 2 | 336 | counted here: 100 |
//! | `Submit`, `SubmitBatch` | `style_tags` of a task | 2 | 24 | `http.max_body`, × 12 |
//! | the same | `events` of a webhook | 1 | 4 | `http.max_body`, × 4 |
//! | `Feedback` | `tags` | 2 | 24 | `http.max_body`, × 12 |
//! | `List` | `phases` | 1 | 4 | `http.max_body`, × 4 |
//! | `ModelInfer`, `ModelStreamInfer` | `inputs` | 2 | 312 | counted here |
//! | the same | `outputs` | 2 | 72 | counted here |
//! | the same | `raw_input_contents` | 2 | 24 | counted here |
//! | the same | `parameters` of any of these, each of another name | 7 | 57 | 256 KiB, × 9 |
//! | the same | `shape` of an input | 1 | 8 | 256 KiB, × 8 |
//! | the same | `contents` of an input: `bytes_contents` | 2 | 24 | 256 KiB, × 12 |
//! | the same | `contents` of an input: numbers, which are widened to 16 bytes | 1 | 8 and 16 | 256 KiB, × 24 |
//! | health, reflection | none | | | 4 KiB |
//!
//! A list takes twice as much for the moment in which it grows. What is bounded by the length alone is checked, and let go of if it is too much,
//! before anything is waited for, since the request is there whole by then ([`crate::layers::message`]): there is no more of it at once than
//! the runtime has threads. A stream may have one such message while auth is asked who sent it. Other services' messages come from the
//! platform itself.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::Request;
use bytes::Bytes;
use contract::Failure;
use contract::limits::MAX_BATCH_TASKS;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// The call that submits many tasks.
pub(crate) const SUBMIT_BATCH: &str = "/inkstone.v1.ImageService/SubmitBatch";
/// The calls that draw a batch of tensors.
pub(crate) const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub(crate) const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Tensors of one kind in a request of the Open Inference Protocol: several times those that there are, so that who sends one too many hears
/// which of them it is.
const MAX_TENSORS: usize = 64;
/// Bytes of the longest number.
const MAX_NUMBER_BYTES: u32 = 10;
/// Fields of one message that are counted.
const MAX_FIELDS: usize = 3;

/// A repeated field, and how many of it one message may have.
#[derive(Debug)]
struct Limit {
    field: u64,
    name: &'static str,
    most: usize,
}

const BATCH: &[Limit] = &[limit(1, "tasks", MAX_BATCH_TASKS)];
const INFERENCE: &[Limit] = &[
    limit(5, "inputs", MAX_TENSORS),
    limit(6, "outputs", MAX_TENSORS),
    limit(7, "raw_input_contents", MAX_TENSORS),
];

const fn limit(field: u64, name: &'static str, most: usize) -> Limit {
    Limit { field, name, most }
}

/// What is counted of the messages of a call.
fn limits(path: &str) -> &'static [Limit] {
    match path {
        SUBMIT_BATCH => BATCH,
        MODEL_INFER | MODEL_STREAM_INFER => INFERENCE,
        _ => &[],
    }
}

/// A gRPC service that has the messages of its calls counted before it decodes them.
#[derive(Clone)]
pub(crate) struct Counting<S>(pub(crate) S);

impl<S: NamedService> NamedService for Counting<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Counting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let limits = limits(request.uri().path());
        if limits.is_empty() {
            return self.0.call(request);
        }
        let walk = Walk::new(limits);
        self.0
            .call(request.map(|body| Body::new(Counted { body, walk })))
    }
}

/// A body that breaks off where a message has too many of something.
struct Counted {
    body: Body,
    walk: Walk,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(failure) = self.walk.take(bytes)
        {
            return Poll::Ready(Some(Err(failure.into())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Walks over the messages of a body, whatever pieces they come in. What cannot be read is left to the decoder, which reads as far and no
/// farther; what is skipped here, it skips as well.
#[derive(Debug)]
struct Walk {
    limits: &'static [Limit],
    /// Of each that is limited, how many the message has so far.
    counts: [usize; MAX_FIELDS],
    at: At,
    /// Bytes of the message that have not come, if its prefix has.
    left: u64,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy)]
enum At {
    /// What stands in front of a message.
    Prefix(Prefix),
    /// What a record is: its field, and the kind of its value.
    Key(Number),
    /// A value that is a number.
    Number(Number),
    /// How many bytes a value has.
    Length(Number),
    /// So many bytes that are skipped, one at least.
    Value(u64),
}

/// The rest of a message that no decoder reads.
const REST: At = At::Value(u64::MAX);

/// Whether a message is packed, and its length, in five bytes of which so many have come.
#[derive(Debug, Clone, Copy, Default)]
struct Prefix {
    bytes: u32,
    packed: bool,
    length: u32,
}

/// A number in pieces of seven bits, the lowest first, of which so many have come.
#[derive(Debug, Clone, Copy, Default)]
struct Number {
    value: u64,
    bytes: u32,
}

enum Read {
    More(Number),
    Whole(u64),
    /// No number is that long.
    Broken,
}

impl Number {
    fn and(self, byte: u8) -> Read {
        let value = self.value | (u64::from(byte & 0x7f) << (7 * self.bytes));
        let bytes = self.bytes + 1;
        if byte < 0x80 {
            Read::Whole(value)
        } else if bytes < MAX_NUMBER_BYTES {
            Read::More(Self { value, bytes })
        } else {
            Read::Broken
        }
    }
}

impl Walk {
    fn new(limits: &'static [Limit]) -> Self {
        Self {
            limits,
            counts: [0; MAX_FIELDS],
            at: At::Prefix(Prefix::default()),
            left: 0,
        }
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// An invalid argument that names the field of which there are too many, and its limit.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while let [first, rest @ ..] = bytes {
            let (at, more) = match self.at {
                At::Prefix(prefix) => {
                    self.prefix(prefix, *first);
                    bytes = rest;
                    continue;
                }
                At::Value(length) => {
                    let more = length.min(self.left).min(bytes.len() as u64);
                    (value(length - more), more)
                }
                At::Key(number) => (self.key(number.and(*first))?, 1),
                At::Number(number) => match number.and(*first) {
                    Read::More(number) => (At::Number(number), 1),
                    Read::Whole(_) => (value(0), 1),
                    Read::Broken => (REST, 1),
                },
                At::Length(number) => match number.and(*first) {
                    Read::More(number) => (At::Length(number), 1),
                    Read::Whole(length) => (value(length), 1),
                    Read::Broken => (REST, 1),
                },
            };
            // It is no more than there is.
            bytes = &bytes[more as usize..];
            self.left -= more;
            self.at = match self.left {
                0 => At::Prefix(Prefix::default()),
                _ => at,
            };
        }
        Ok(())
    }

    fn prefix(&mut self, prefix: Prefix, byte: u8) {
        let mut prefix = prefix;
        match prefix.bytes {
            0 => prefix.packed = byte != 0,
            _ => prefix.length = (prefix.length << 8) | u32::from(byte),
        }
        prefix.bytes += 1;
        self.at = At::Prefix(prefix);
        if prefix.bytes < 5 {
            return;
        }
        self.counts = [0; MAX_FIELDS];
        self.left = u64::from(prefix.length);
        self.at = match prefix {
            Prefix { length: 0, .. } => At::Prefix(Prefix::default()),
            // Refused, whatever is in it.
            Prefix { packed: true, .. } => REST,
            _ => value(0),
        };
    }

    fn key(&mut self, read: Read) -> Result<At, Failure> {
        let key = match read {
            Read::More(number) => return Ok(At::Key(number)),
            Read::Whole(key) => key,
            Read::Broken => return Ok(REST),
        };
        match key & 7 {
            0 => Ok(At::Number(Number::default())),
            1 => Ok(value(8)),
            2 => {
                self.count(key >> 3)?;
                Ok(At::Length(Number::default()))
            }
            // A group's begin and end. What is in one is counted as if it stood outside: nobody sends any.
            3 | 4 => Ok(value(0)),
            5 => Ok(value(4)),
            _ => Ok(REST),
        }
    }

    fn count(&mut self, field: u64) -> Result<(), Failure> {
        for (limit, count) in self.limits.iter().zip(&mut self.counts) {
            if limit.field != field {
                continue;
            }
            *count += 1;
            let Limit { name, most, .. } = limit;
            if *count > *most {
                let message = format!("{name} must hold at most {most}, and there are more");
                return Err(Failure::invalid(*name, message));
            }
        }
        Ok(())
    }
}

/// A value of this length that is skipped, and the next record behind it.
fn value(length: u64) -> At {
    match length {
        0 => At::Key(Number::default()),
        _ => At::Value(length),
    }
}

/// Counts what one message of a call has, in pieces of `size` bytes.
pub(crate) fn check(path: &str, message: &[u8], size: usize) -> Result<(), Failure> {
    let mut walk = Walk::new(limits(path));
    // Longer ones do not come this far.
    let length = (message.len() as u32).to_be_bytes();
    let framed = [&[0][..], &length, message].concat();
    framed
        .chunks(size.max(1))
        .try_for_each(|piece| walk.take(piece))
}

#[cfg(test)]
mod tests {
    use contract::inference::ModelInferRequest;
    use contract::inference::model_infer_request::InferInputTensor;
    use contract::{ErrorCode, v1};
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn batch(tasks: usize) -> Vec<u8> {
        let task = v1::SubmitTask {
            prompt: "a cat".repeat(40),
            style_tags: vec!["3d".to_owned(); 16],
            seed: Some(u64::MAX),
            guidance_scale: Some(7.5),
            ..Default::default()
        };
        let tasks = vec![task; tasks];
        v1::SubmitBatchRequest { tasks }.encode_to_vec()
    }

    fn refused(path: &str, message: &[u8]) -> Option<String> {
        let refused = check(path, message, 4096).err()?;
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
        refused.field
    }

    #[test]
    fn a_batch_of_as_many_tasks_as_one_may_have_passes_in_any_pieces_and_one_more_does_not() {
        for size in [1, 2, 7, 1000, usize::MAX] {
            check(SUBMIT_BATCH, &batch(100), size).unwrap();
            let refused = check(SUBMIT_BATCH, &batch(101), size).unwrap_err();
            assert_eq!(
                refused.message,
                "tasks must hold at most 100, and there are more"
            );
        }
        // Of calls that have one task, and in messages that follow each other, nothing is counted together.
        assert_eq!(
            refused("/inkstone.v1.ImageService/Submit", &batch(101)),
            None
        );
        let mut walk = Walk::new(BATCH);
        let message = batch(100);
        for _ in 0..3 {
            walk.take(&[0]).unwrap();
            walk.take(&(message.len() as u32).to_be_bytes()).unwrap();
            walk.take(&message).unwrap();
            walk.take(&[0; 5]).unwrap();
        }
    }

    #[test]
    fn empty_records_are_counted_however_they_are_written() {
        let many = |record: &[u8]| record.repeat(101);
        for record in [
            &[0x0a, 0][..],
            // The same numbers, longer than they have to be.
            &[0x8a, 0, 0],
            &[0x0a, 0x80, 0x80, 0],
            // Between fields that nobody knows, of every kind.
            &[0x0a, 0, 0x10, 0xff, 0x01],
            &[0x0a, 0, 0x11, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x0a, 0, 0x12, 2, 0x0a, 0],
            &[0x0a, 0, 0x15, 1, 2, 3, 4],
            &[0x0a, 0, 0x13, 0x14],
        ] {
            let found = refused(SUBMIT_BATCH, &many(record));
            assert_eq!(found.as_deref(), Some("tasks"), "{record:x?}");
        }
        // What stands inside another value is none of its message's.
        assert_eq!(
            refused(
                SUBMIT_BATCH,
                &[&[0x12, 202, 1][..], &many(&[0x0a, 0])].concat()
            ),
            None
        );
        // Nor is what comes after an error, which ends the decoder's reading.
        assert_eq!(
            refused(SUBMIT_BATCH, &[&[0x0f][..], &many(&[0x0a, 0])].concat()),
            None
        );
        assert_eq!(
            refused(SUBMIT_BATCH, &[&[0xff; 10][..], &many(&[0x0a, 0])].concat()),
            None
        );
    }

    #[test]
    fn tensors_are_counted_each_kind_by_itself() {
        let inputs = vec![InferInputTensor::default(); MAX_TENSORS];
        let mut request = ModelInferRequest {
            inputs,
            raw_input_contents: vec![Vec::new(); MAX_TENSORS],
            ..Default::default()
        };
        for path in [MODEL_INFER, MODEL_STREAM_INFER] {
            assert_eq!(refused(path, &request.encode_to_vec()), None);
        }
        request.raw_input_contents.push(Vec::new());
        let field = refused(MODEL_INFER, &request.encode_to_vec());
        assert_eq!(field.as_deref(), Some("raw_input_contents"));
        request.inputs.push(InferInputTensor::default());
        let field = refused(MODEL_STREAM_INFER, &request.encode_to_vec());
        assert_eq!(field.as_deref(), Some("inputs"));
    }

    #[tokio::test]
    async fn a_body_breaks_off_with_a_status_that_names_the_field() {
        let counted = |message: Vec<u8>| {
            let length = (message.len() as u32).to_be_bytes();
            let framed = [&[0][..], &length, &message].concat();
            let body = Body::new(axum::body::Body::from(framed));
            let walk = Walk::new(BATCH);
            Body::new(Counted { body, walk }).collect()
        };
        assert!(counted(batch(100)).await.is_ok());
        let status = counted(batch(101)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        let field = Failure::from(status).field;
        assert_eq!(field.as_deref(), Some("tasks"));
    }

    proptest! {
        #[test]
        fn what_passes_has_no_more_tasks_than_it_may_have(
            pieces in proptest::collection::vec(
                prop_oneof![
                    8 => Just(vec![0x0a_u8, 0]),
                    2 => proptest::collection::vec(any::<u8>(), 0..6),
                    1 => Just(vec![0x0a_u8, 2, 0x12, 0]),
                    1 => Just(vec![0x8a_u8, 0x80, 0, 0x80, 0]),
                ],
                0..300,
            ),
            size in 1_usize..40,
        ) {
            let message = pieces.concat();
            if let (Ok(()), Ok(batch)) = (
                check(SUBMIT_BATCH, &message, size),
                v1::SubmitBatchRequest::decode(message.as_slice()),
            ) {
                prop_assert!(batch.tasks.len() <= MAX_BATCH_TASKS);
            }
        }
    }
}
