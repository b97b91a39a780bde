//! What a model says that it takes, beside what it takes. A binary of its own: it counts every allocation.
#![allow(unsafe_code, clippy::unwrap_used, clippy::print_stdout)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use diffusion::{DType, Device, Model, Request};

/// Counts what lives, and the most that has.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own; the counters change nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` takes beyond what lives before it.
fn taken<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    ((PEAK.load(Ordering::Relaxed) - before) as u64, result)
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn a_model_takes_no_more_memory_than_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let demo = root.join("../../assets/models/inkstone-demo");
    let (loading, model) = taken(|| Model::load(&demo, &Device::Cpu, DType::F32).unwrap());
    let weights = model.weights_bytes();
    println!("weights {weights}, loading took {loading}");
    for (side, jobs) in [(128, 1), (128, 4), (256, 1), (256, 2), (512, 1)] {
        let request = Request {
            prompt: "a 3d cat".to_owned(),
            width: side,
            height: side,
            steps: 2,
            guidance_scale: 2.0,
            ..Request::default()
        };
        let begin = |seed| {
            let request = Request {
                seed,
                ..request.clone()
            };
            model.begin(&request).unwrap()
        };
        // What encoding a text takes, and what is kept of it, is not the jobs'.
        drop(begin(9));
        let before = LIVE.load(Ordering::Relaxed);
        let mut all: Vec<_> = (0..jobs).map(begin).collect();
        let held = (LIVE.load(Ordering::Relaxed) - before) as u64;
        within("jobs hold", held, jobs * model.job_bytes(&request));

        let rows = all.iter().map(diffusion::Job::rows).sum();
        let mut most = 0;
        for _ in 0..2 {
            let mut batch: Vec<_> = all.iter_mut().collect();
            let (took, answers) = taken(|| model.step(&mut batch));
            assert!(answers.iter().all(Result::is_ok));
            most = most.max(took);
        }
        println!("{side}×{side}, {rows} rows:");
        within("a step takes", most, model.step_bytes(side, side, rows));
        let (took, _) = taken(|| model.decode(&all[0]).unwrap());
        within("decoding takes", took, model.decode_bytes(side, side));
    }
}

fn within(what: &str, took: u64, said: u64) {
    println!("{what} {took} of {said}");
    assert!(took <= said, "{what} {took} bytes, and {said} were said");
}
