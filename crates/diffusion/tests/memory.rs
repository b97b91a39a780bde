//! What a model says that it takes, beside what it takes. A binary of its own: it counts every allocation.
#![allow(unsafe_code, clippy::unwrap_used, clippy::print_stdout)]

use std::alloc::{GlobalAlloc, Layout};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use diffusion::{DType, Device, MeteredAllocator, Model, PassMemory, Request};

/// Counts what lives, and the most that has, whoever allocates it: above what the engine itself measures by.
struct Counting;

const BELOW: MeteredAllocator = MeteredAllocator;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the allocator's below; the counters change nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { BELOW.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { BELOW.dealloc(pointer, layout) }
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
            steps: 4,
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
        println!("{side}×{side}, {rows} rows:");
        let mut most = 0;
        for _ in 0..request.steps {
            let mut batch: Vec<_> = all.iter_mut().collect();
            diffusion::bench::forget_buffers();
            let (took, answers) = taken(|| model.step(&mut batch));
            assert!(answers.iter().all(Result::is_ok));
            most = most.max(took);
        }
        near("a step takes", most, model.step_memory(side, side, rows));
        let decodings = [0, 0].map(|job| {
            diffusion::bench::forget_buffers();
            taken(|| model.decode(&all[job]).unwrap()).0
        });
        near(
            "decoding takes",
            decodings[0].max(decodings[1]),
            model.decode_memory(side, side),
        );
    }
}

/// The shapes say enough, what was measured is what was taken, and what is reckoned with is enough and not much more.
fn near(what: &str, took: u64, said: PassMemory) {
    let measured = said.measured.unwrap();
    println!(
        "{what} {took}: measured {measured}, computed {}",
        said.computed
    );
    within(what, took, said.computed);
    within(what, took, said.bytes());
    // How many threads help with a piece of work is the system's decision, and each has something of its own.
    assert!(
        measured.abs_diff(took) <= took / 16 + (1 << 20),
        "{what} {took} bytes, and {measured} were measured"
    );
    let beyond = said.bytes() - took;
    assert!(
        beyond <= took / 4 + (4 << 20),
        "{what} {took} bytes, and {} are reckoned with",
        said.bytes()
    );
}

fn within(what: &str, took: u64, said: u64) {
    println!("{what} {took} of {said}");
    assert!(took <= said, "{what} {took} bytes, and {said} were said");
}
