//! What a run took: bytes on each link, processor time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Fleet;
use crate::network::Counter;
use crate::program::{Program, machine_ticks, own_cpu};

impl Fleet {
    /// Begins to measure.
    pub(crate) fn meter(&self) -> Result<Meter> {
        Ok(Meter {
            counters: self.network.counters()?,
            cpu: self.cpu(),
            machine: machine_ticks(),
            started: Instant::now(),
        })
    }

    /// Samples every link until `stop`, for timelines: seconds since now, and what went through each so far.
    pub(crate) fn sample<'s>(
        &'s self,
        scope: &'s thread::Scope<'s, '_>,
        every: Duration,
        stop: &'s AtomicBool,
    ) -> thread::ScopedJoinHandle<'s, Vec<(f64, BTreeMap<String, Counter>)>> {
        let started = Instant::now();
        scope.spawn(move || {
            let mut samples = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                if let Ok(counters) = self.network.counters() {
                    samples.push((started.elapsed().as_secs_f64(), counters));
                }
                thread::sleep(every);
            }
            samples
        })
    }

    /// Processor time of all daemons and schedulers that run, and of this process, in seconds.
    fn cpu(&self) -> f64 {
        let daemons = self.hosts.iter().filter_map(|host| host.program.as_ref());
        let schedulers = self.schedulers.iter().filter_map(|scheduler| scheduler.program.as_ref());
        daemons.chain(schedulers).map(Program::cpu).sum::<f64>() + own_cpu()
    }
}

/// Counters at a moment.
pub(crate) struct Meter {
    counters: BTreeMap<String, Counter>,
    cpu: f64,
    machine: (u64, u64),
    started: Instant,
}

/// What happened since.
pub(crate) struct Reading {
    /// What each host's link carried.
    pub(crate) hosts: Vec<Counter>,
    pub(crate) origin: Counter,
    /// Processor seconds of the daemons, schedulers, origin and clients.
    pub(crate) cpu: f64,
    /// The share of the machine's processors that was busy, whoever used them.
    pub(crate) busy: f64,
    pub(crate) took: Duration,
}

impl Reading {
    /// The share of the machine's processors that the fleet and its clients used.
    pub(crate) fn ours(&self) -> f64 {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        self.cpu / self.took.as_secs_f64() / processors as f64
    }
}

impl Meter {
    pub(crate) fn read(self, fleet: &Fleet) -> Result<Reading> {
        let now = fleet.network.counters()?;
        let since = |name: &str| {
            now.get(name).copied().unwrap_or_default() - self.counters.get(name).copied().unwrap_or_default()
        };
        let machine = machine_ticks();
        Ok(Reading {
            hosts: fleet.hosts.iter().map(|host| since(&host.place.name)).collect(),
            origin: since("origin"),
            // A program that was killed has taken its figure with it.
            cpu: (fleet.cpu() - self.cpu).max(0.0),
            busy: (machine.0 - self.machine.0) as f64 / (machine.1 - self.machine.1).max(1) as f64,
            took: self.started.elapsed(),
        })
    }
}
