//! The engine with the demo model: whatever happens to a picture on the way, it is the one that is drawn alone.

mod faults;
mod mixes;
mod room;
mod simulated;
mod steps;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use diffusion::{DType, Device};

use super::*;

const NO_LIMITS: EngineLimits = EngineLimits {
    max_batch: 4,
    max_step: None,
    memory: u64::MAX,
};
const PATIENCE: Duration = Duration::from_secs(120);

fn demo() -> Model {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/inkstone-demo");
    Model::load(&root, &Device::Cpu, DType::F32).unwrap()
}

fn request(seed: u64, steps: u32) -> Request {
    Request {
        prompt: "a 3d panda on a yellow background".to_owned(),
        width: 128,
        height: 128,
        steps,
        guidance_scale: 2.0,
        seed,
        ..Request::default()
    }
}

/// What a request draws with nobody else there.
fn alone(request: &Request) -> Vec<u8> {
    static MODEL: OnceLock<Model> = OnceLock::new();
    static DRAWN: OnceLock<Mutex<HashMap<String, Vec<u8>>>> = OnceLock::new();
    let drawn = DRAWN.get_or_init(Mutex::default);
    let key = format!("{request:?}");
    if let Some(pixels) = drawn.lock().unwrap().get(&key) {
        return pixels.clone();
    }
    let model = MODEL.get_or_init(demo);
    let mut job = model.begin(request).unwrap();
    while !job.is_finished() {
        for progress in model.step(&mut [&mut job]) {
            progress.unwrap();
        }
    }
    let pixels = model.paint(job.latents()).unwrap().pixels;
    drawn.lock().unwrap().insert(key, pixels.clone());
    pixels
}

struct Studio {
    engine: Engine,
    model: Arc<Loaded>,
}

impl Studio {
    async fn open(limits: EngineLimits) -> Self {
        Self::of(Engine::start(limits).unwrap()).await
    }

    async fn with(limits: EngineLimits, step: Step) -> Self {
        Self::of(Engine::start_with(limits, step).unwrap()).await
    }

    async fn of(engine: Engine) -> Self {
        let model = demo();
        let reserved = engine.reserve(0, Needs::default()).await.unwrap();
        let model = engine.adopt(model, reserved).await.unwrap();
        Self { engine, model }
    }

    async fn begin(&self, request: Request, weight: u32) -> (Picture, Outcome) {
        self.go_on(request, weight, None).await
    }

    async fn go_on(
        &self,
        request: Request,
        weight: u32,
        resume: Option<Vec<u8>>,
    ) -> (Picture, Outcome) {
        let start = Start {
            model: self.model.clone(),
            request,
            resume,
            flow: self.engine.flow(weight),
            index: 0,
            previews: 0,
            seen: mpsc::channel(1).0,
        };
        self.engine.begin(start).await.unwrap()
    }

    /// Waits until the engine has looked at everything that was asked of it before.
    async fn looked_at_all(&self) {
        // The second is only looked at when all that follows upon the first has been done.
        for _ in 0..2 {
            drop(self.engine.reserve(0, Needs::default()).await.unwrap());
        }
    }

    async fn account_is(&self, what: &str, mut condition: impl FnMut(&Account) -> bool) {
        let mut account = self.engine.account.clone();
        let waiting = account.wait_for(|account| condition(account));
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        drop(waited.unwrap_or_else(|_| panic!("never: {what}")).unwrap());
    }
}

/// A limit under which, beside the weights, so many pictures of 128×128 and one step or decoding have room.
fn room_for(pictures: u64) -> u64 {
    let model = demo();
    let needs = loaded::needs(&model, &request(1, 1));
    let room = model.weights_bytes() + pictures * needs.job + needs.peak();
    // Of the limit a part is set aside.
    room * 32 / 31 + 32
}

async fn reaches(picture: &Picture, step: u32) {
    let mut progress = picture.progress.clone();
    let reached = progress.wait_for(|progress| progress.step >= step);
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    drop(reached.expect("it goes on"));
}

async fn drawn(outcome: Outcome) -> Result<Vec<u8>, EngineError> {
    let outcome = tokio::time::timeout(PATIENCE, outcome).await;
    let outcome = outcome.expect("it comes out").expect("somebody answers");
    outcome.map(|drawn| drawn.image.pixels)
}
