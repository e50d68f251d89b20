//! Several hosts and their scheduler.

use super::daemon::DaemonPlan;
use super::{Answer, Ask, Daemon, Scheduler, block_on};

/// Hosts that know one scheduler.
pub(crate) struct Fleet {
    pub(crate) hosts: Vec<Daemon>,
    pub(crate) scheduler: Scheduler,
}

impl Fleet {
    /// `count` hosts, named h1, h2, …
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, |plan| plan)
    }

    /// The same with a change to each host's configuration.
    pub(crate) fn start_with(count: usize, change: impl Fn(DaemonPlan) -> DaemonPlan) -> Self {
        let scheduler = Scheduler::start();
        let plan = |number| change(Daemon::plan(&format!("h{number}")).scheduler(&scheduler));
        let hosts = (1..=count).map(|number| plan(number).start()).collect();
        Self { hosts, scheduler }
    }

    /// GETs through all hosts at once; the answers are in the order of the hosts.
    pub(crate) fn get_everywhere(&self, url: &str) -> Vec<Answer> {
        let asks = self.hosts.iter().map(|host| Ask::get(url).via(host.proxy()));
        all(asks)
    }
}

/// Makes requests at the same time.
pub(crate) fn all(asks: impl IntoIterator<Item = Ask>) -> Vec<Answer> {
    block_on(futures_util::future::join_all(asks.into_iter().map(Ask::send_async)))
}
