//! Work split over the processor's threads. The only file that knows how threads are had.
//!
//! The pool is made for many short pieces of work (hundreds a step, tens of microseconds each) on machines whose
//! cores are also wanted by others: the caller always works itself, and waits only for threads that have really
//! joined. A thread that the system does not run costs nothing but its help.
//!
//! A call made while another is in progress (from another thread, or from inside) runs on its own thread alone.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

/// How often an idle thread looks for new work before it sleeps: some tens of microseconds, the pause between two
/// operations of a step.
const SPINS: u32 = 4_000;

/// One call: pieces are handed out by `next` until there are none.
struct Call<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    panicked: AtomicBool,
}

impl Call<'_> {
    fn run(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| (self.work)(index))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// A call that helpers may join. The lifetime is erased; [`Pool::run`] sees to it that nobody holds it longer.
#[derive(Clone, Copy)]
struct Open(*const Call<'static>);

// SAFETY: a `Call` is shared between threads (its work is `Sync`, the rest are atomics), and the pointer is read only
// by a thread that joined, for which `Pool::run` waits.
unsafe impl Send for Open {}

struct Pool {
    helpers: usize,
    /// Held for the length of a call.
    turn: Mutex<()>,
    open: Mutex<Option<Open>>,
    opened: Condvar,
    /// Counts calls, for helpers that look without taking the lock.
    calls: AtomicUsize,
    /// Helpers inside the open call. Grows only under `open`'s lock.
    joined: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn get() -> &'static Pool {
        static POOL: OnceLock<&'static Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let pool: &'static Pool = Box::leak(Box::new(Pool {
                helpers: candle_core::utils::get_num_threads().max(1) - 1,
                turn: Mutex::new(()),
                open: Mutex::new(None),
                opened: Condvar::new(),
                calls: AtomicUsize::new(0),
                joined: AtomicUsize::new(0),
            }));
            for index in 0..pool.helpers {
                let thread = std::thread::Builder::new().name(format!("engine-{index}"));
                // Fewer helpers are only slower.
                drop(thread.spawn(move || pool.help()));
            }
            pool
        })
    }

    fn help(&self) {
        crate::meter::count_this_thread();
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.calls.load(Ordering::Acquire) != seen {
                    break;
                }
                std::hint::spin_loop();
            }
            let call = {
                let mut open = lock(&self.open);
                while self.calls.load(Ordering::Acquire) == seen {
                    open = self
                        .opened
                        .wait(open)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                seen = self.calls.load(Ordering::Acquire);
                if open.is_some() {
                    self.joined.fetch_add(1, Ordering::AcqRel);
                }
                *open
            };
            if let Some(Open(call)) = call {
                // SAFETY: the call was open when `joined` was counted up under the lock, so its owner waits in `run`
                // until it is counted down below.
                unsafe { &*call }.run();
                self.joined.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let turn = if self.helpers == 0 || count < 2 {
            None
        } else {
            match self.turn.try_lock() {
                Ok(turn) => Some(turn),
                // It guards no data: a panic of an earlier call, which unwound through here, has left nothing half-done.
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        };
        if turn.is_none() {
            return (0..count).for_each(work);
        }
        let call = Call {
            work,
            count,
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        };
        {
            let mut open = lock(&self.open);
            *open = Some(Open((&raw const call).cast()));
            self.calls.fetch_add(1, Ordering::AcqRel);
        }
        self.opened.notify_all();
        // Panics of the work are kept inside, so that this always comes to the waiting below.
        call.run();
        // From here on nobody can join; those who did are waited for, because `call` is on this stack.
        *lock(&self.open) = None;
        let mut spins = 0;
        while self.joined.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
        }
        assert!(
            !call.panicked.load(Ordering::Relaxed),
            "a piece of work panicked; its own message is above"
        );
    }
}

/// Threads that take part, the caller's included.
pub(crate) fn count() -> usize {
    Pool::get().helpers + 1
}

/// Runs `work(index, chunk)` for each `chunk` values of `data` (the last may be shorter), in any order.
pub(crate) fn for_chunks<T: Send>(
    data: &mut [T],
    chunk: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let chunk = chunk.max(1);
    if data.len() <= chunk || count() == 1 {
        for (index, part) in data.chunks_mut(chunk).enumerate() {
            work(index, part);
        }
        return;
    }
    // Each lock is taken once, by the one thread that drew the index: it hands out the exclusive borrow.
    let parts: Vec<Mutex<&mut [T]>> = data.chunks_mut(chunk).map(Mutex::new).collect();
    Pool::get().run(parts.len(), &|index| work(index, &mut lock(&parts[index])));
}

/// Runs `work(0)` … `work(count - 1)`, in any order.
pub(crate) fn each(count: usize, work: impl Fn(usize) + Sync) {
    if count == 1 {
        return work(0);
    }
    Pool::get().run(count, &work);
}

/// Values that pieces of work write to where no chunk is one piece's alone, such as columns of a matrix.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow that is handed out in parts; whoever takes one promises that it is theirs alone.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self {
            start: values.as_mut_ptr(),
            len: values.len(),
            values: PhantomData,
        }
    }

    /// `len` values from `at` on.
    ///
    /// # Safety
    ///
    /// No two parts that are held at once overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: it lies within the values, and the caller promises that it is the only borrow of them.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// Rows and columns of a matrix that are one piece's alone.
pub(crate) struct Tile<'a> {
    matrix: &'a Shared<'a>,
    width: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
}

impl Tile<'_> {
    /// The tile's part of a row; rows are numbered as in the matrix.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row));
        let at = row * self.width + self.columns.start;
        // SAFETY: `for_tiles` cuts the matrix so that tiles do not overlap, and this one is borrowed exclusively.
        unsafe { self.matrix.part(at, self.columns.len()) }
    }
}

/// Cuts `range` of the columns of a matrix of `width` columns into tiles of at most `rows` × `columns` and runs `work` on
/// each, in any order.
pub(crate) fn for_tiles(
    matrix: &mut [f32],
    width: usize,
    range: Range<usize>,
    rows: usize,
    columns: usize,
    work: impl Fn(Tile<'_>) + Sync,
) {
    let (height, across) = (
        matrix.len() / width.max(1),
        range.len().div_ceil(columns.max(1)),
    );
    let matrix = Shared::new(matrix);
    each(height.div_ceil(rows.max(1)) * across, |index| {
        let top = index / across * rows;
        let left = range.start + index % across * columns;
        work(Tile {
            matrix: &matrix,
            width,
            rows: top..height.min(top + rows),
            columns: left..range.end.min(left + columns),
        });
    });
}

/// The answers of `work(0)` … `work(count - 1)`, in that order.
pub(crate) fn map<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut answers: Vec<Option<R>> = (0..count).map(|_| None).collect();
    for_chunks(&mut answers, 1, |index, slot| slot[0] = Some(work(index)));
    answers.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_runs_once_whoever_calls() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for size in 1..200 {
                        let mut data = vec![0_usize; size * 3 - 1];
                        for_chunks(&mut data, 3, |index, chunk| {
                            chunk.iter_mut().for_each(|x| *x += index + 1)
                        });
                        assert!(data.iter().enumerate().all(|(at, x)| *x == at / 3 + 1));
                        assert_eq!(
                            map(size, |index| index * index)[size - 1],
                            (size - 1) * (size - 1)
                        );
                    }
                });
            }
        });
    }

    #[test]
    fn tiles_cover_a_matrix_once() {
        for (height, width, rows, columns) in [(1, 1, 3, 3), (7, 10, 2, 4), (5, 3, 8, 1)] {
            let mut matrix = vec![0.0; height * width];
            let half = width / 2;
            for range in [0..half, half..width] {
                for_tiles(&mut matrix, width, range, rows, columns, |mut tile| {
                    for row in tile.rows.clone() {
                        tile.row(row).iter_mut().for_each(|x| *x += 1.0);
                    }
                });
            }
            assert!(matrix.iter().all(|x| *x == 1.0));
        }
    }

    #[test]
    fn a_call_inside_a_call_runs() {
        let sums = map(20, |outer| {
            map(20, |inner| outer * inner).into_iter().sum::<usize>()
        });
        assert_eq!(sums[3], 3 * 190);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_alive() {
        let caught = catch_unwind(|| map(50, |index| assert_ne!(index, 25)));
        assert!(caught.is_err());
        assert_eq!(map(50, |index| index).len(), 50);
    }
}
