//! Times contenders in turns of a few dozen calls, while the processors stay awake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Threads of idle priority, one per processor. They take no time from other work, and keep each processor out of its
/// sleep states.
///
/// Waking up from a sleep state takes 20 to 100 microseconds, longer than many of the timed calls.
pub struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spinners {
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let priority = libc::sched_param { sched_priority: 0 };
                // SAFETY: 0 is the calling thread, and the pointer lives through the call.
                let idle = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
                while idle == 0 && !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..thread::available_parallelism().map_or(1, usize::from)).map(spin).collect();
        Self { stop, threads }
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The time of a call, in microseconds.
#[derive(Clone, Copy)]
pub struct Timing {
    pub median: f64,
    /// The tenth percentile. Other work on the machine changes it least.
    pub tenth: f64,
}

const TURN: usize = 24;
const SHORT_TURN: Duration = Duration::from_millis(40);
const WARM_UP: usize = 12;

/// Times contenders in turns, each round in another order, until the budget is spent.
pub fn race<C: ?Sized>(contenders: &mut [Box<C>], budget: Duration, call: impl Fn(&mut C)) -> Vec<Timing> {
    for contender in &mut *contenders {
        let start = Instant::now();
        for _ in 0..WARM_UP {
            call(contender);
            // After the fifth execution a plan is kept. A slow operation needs no more warm-up.
            if start.elapsed() > 10 * SHORT_TURN {
                break;
            }
        }
    }
    let mut times = vec![Vec::new(); contenders.len()];
    let start = Instant::now();
    let mut round = 0;
    while round < 5 || start.elapsed() < budget {
        for index in 0..contenders.len() {
            let index = (index + round) % contenders.len();
            let turn = Instant::now();
            for _ in 0..TURN {
                let before = Instant::now();
                call(&mut contenders[index]);
                times[index].push(before.elapsed());
                if turn.elapsed() > SHORT_TURN {
                    break;
                }
            }
        }
        round += 1;
    }
    times.into_iter().map(summary).collect()
}

fn summary(mut times: Vec<Duration>) -> Timing {
    times.sort_unstable();
    let micros = |of: usize| times[(times.len() - 1) * of / 100].as_secs_f64() * 1e6;
    Timing { median: micros(50), tenth: micros(10) }
}

/// The calls per second of a number of threads, each with its own worker.
pub fn throughput(threads: usize, time: Duration, worker: impl Fn() -> Box<dyn FnMut()> + Sync) -> f64 {
    let start = std::sync::Barrier::new(threads);
    let calls: usize = thread::scope(|scope| {
        let run = || {
            let mut call = worker();
            (0..WARM_UP).for_each(|_| call());
            start.wait();
            let begin = Instant::now();
            let mut calls = 0;
            while begin.elapsed() < time {
                call();
                calls += 1;
            }
            calls
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    calls as f64 / time.as_secs_f64()
}
