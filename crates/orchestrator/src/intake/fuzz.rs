//! What here reads what producers send, for the crate `fuzz-edge`. Not for anyone else.

use contract::limits::MAX_IDEMPOTENCY_KEY_BYTES;
use contract::{v1, validate};
use prost::Message as _;

use super::message::{Message, Raw};

/// A reader's name, good inputs, and the reader: it says whether it took an input, and panics when it took what it may not.
pub type Target = (&'static str, Vec<Vec<u8>>, Box<dyn Fn(&[u8]) -> bool>);

/// All of them.
pub fn targets() -> Vec<Target> {
    vec![("NATS intake", messages(), Box::new(read))]
}

/// A subject, header fields, an empty line, and a payload.
fn messages() -> Vec<Vec<u8>> {
    let json = "inkstone.intake.acme\nContent-Type: application/json\nAuthorization: Bearer ink_prod-a_0123456789abcdef\n\
        Nats-Msg-Id: order-17\n\n{\"prompt\":\"a cat\",\"images\":2,\"idempotency_key\":\"order-17\"}";
    let task = v1::SubmitTask {
        prompt: "a cat".to_owned(),
        images: 2,
        seed: Some(7),
        ..Default::default()
    };
    let mut binary =
        b"inkstone.intake.acme\nX-App-Key: prod-a\nX-Timestamp: 1700000000\nX-Signature: 00ff\n\n"
            .to_vec();
    binary.extend(task.encode_to_vec());
    let mut signed = b"inkstone.intake.acme\nX-App-Key: prod-a\nX-Timestamp: 1700000000\nX-Nonce: abcdefghijklmnop\n\
        X-Content-SHA256: 00\nX-Signature: 00ff\nIdempotency-Key: k\n\n"
        .to_vec();
    signed.extend(task.encode_to_vec());
    vec![json.as_bytes().to_vec(), binary, signed]
}

fn read(input: &[u8]) -> bool {
    let end = input.windows(2).position(|pair| pair == b"\n\n");
    let (head, payload) = match end {
        Some(end) => (&input[..end], &input[end + 2..]),
        None => (input, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let raw = Raw {
        subject: lines.next().unwrap_or_default(),
        headers: lines.filter_map(|line| line.split_once(": ")).collect(),
        payload,
        sequence: 7,
        taken: 1_700_000_000_000_000_000,
    };
    let Some(message) = Message::read(&raw) else {
        return false;
    };
    assert!(message.reference.len() <= MAX_IDEMPOTENCY_KEY_BYTES);
    if let Ok(request) = &message.request {
        // Read is checked, and whoever it is from has a key that keeps it from being made twice.
        assert_eq!(validate(request), Ok(()));
        assert!(!request.idempotency_key.is_empty());
        assert_eq!(
            raw.subject.strip_prefix("inkstone.intake."),
            Some(message.tenant.as_str())
        );
    }
    message.request.is_ok()
}
