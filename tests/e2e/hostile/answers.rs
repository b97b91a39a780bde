//! Answers that take the gateway much memory to make, asked for many at a time.

use std::time::Instant;

use e2e::{LIMIT, Platform};
use serde_json::{Value, json};

use super::{PAUSE, under_attack};

/// Requests for the same pictures at once.
const REQUESTS: usize = 50;

/// Who asks for pictures inside an answer, always by the same key.
struct Caller {
    url: String,
    bearer: String,
    wish: Value,
}

impl Caller {
    fn ask(&self) -> (u16, String) {
        let answer = e2e::agent()
            .post(format!("{}/v1/images/generations", self.url))
            .header("authorization", &self.bearer)
            .header("idempotency-key", "the same")
            .send_json(&self.wish);
        let mut answer = answer.unwrap();
        let status = answer.status().as_u16();
        if matches!(status, 429 | 503) {
            assert!(answer.headers().contains_key("retry-after"));
        }
        (status, answer.body_mut().read_to_string().unwrap())
    }

    /// Asks until there is room.
    fn ask_on(&self) -> String {
        let began = Instant::now();
        loop {
            match self.ask() {
                (200, answer) => return answer,
                (429 | 503, _) if began.elapsed() < LIMIT => std::thread::sleep(PAUSE),
                (status, answer) => panic!("{status}: {answer}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_answers_with_pictures_inside_are_made_within_the_room_that_there_is_for_all() {
    // Of which one tenant may have half: little more than one of these answers takes while it is made.
    let settings = [("INKSTONE_GATEWAY__HTTP__MAX_CARRIED_BYTES", "16MiB")];
    let platform = Platform::start_with(&settings).await;
    platform.allow("dev", 1000).await;
    let caller = Caller {
        url: platform.url(),
        bearer: platform.authorization(),
        wish: json!({"prompt": "a 3d cat", "size": "256x256", "n": 10, "steps": 1, "seed": 7}),
    };
    let first = tokio::task::block_in_place(|| caller.ask_on());
    println!("an answer has {} KiB", first.len() / 1024);
    // All at once they would take more than twice as much.
    under_attack(&platform, "pictures inside, many times", 64, async {
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                for _ in 0..REQUESTS {
                    scope.spawn(|| assert!(caller.ask_on() == first, "another answer"));
                }
            });
        });
    })
    .await;
}
