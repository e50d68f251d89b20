//! A crowd on one cold task: how wide the mesh is that it makes.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::swarm::{Answer, HostInfo, Registration, Report};
use damselfly_core::{HostId, Moment, PeerId};

use super::world::{geometry, host_info, registration};
use crate::{Config, Core, Event, Output};

const CROWD: usize = 2000;

#[test]
fn everybody_is_a_few_steps_from_everybody() {
    let mut core = Core::new(Config { uncut_lease: 0, ..Config::default() }, 3);
    let mut parents: BTreeMap<PeerId, Vec<PeerId>> = BTreeMap::new();
    let mut sent = BTreeSet::new();
    for number in 0..CROWD {
        let name = format!("h{number}");
        let now = Moment::START;
        core.handle(now, Event::HostAnnounced(HostInfo { upload_slots: 50, ..host_info(&name) }));
        let register = Registration { host: HostId::from(name.as_str()), ..registration(&name) };
        core.handle(now, Event::Register(register));
        core.handle(now, Event::Report(super::world::peer("h0"), Report::SourceOpened(geometry())));
        while let Some(output) = core.poll() {
            match output {
                Output::Answer(peer, Answer::Parents { offers, .. }) => {
                    parents.insert(peer, offers.into_iter().map(|offer| offer.peer).collect());
                }
                Output::Answer(peer, Answer::GoToSource { .. }) => drop(sent.insert(peer)),
                _ => {}
            }
        }
    }
    assert_eq!(sent.len(), 2, "nothing is known of the source yet");
    // A piece at the first goes to whoever has it as parent, and on: how many steps until all have it?
    let mut have: BTreeSet<PeerId> = [super::world::peer("h0")].into();
    let mut steps = 0;
    while have.len() < CROWD {
        let before = have.len();
        let next = parents.iter().filter(|(_, parents)| parents.iter().any(|parent| have.contains(parent)));
        have = have.iter().cloned().chain(next.map(|(peer, _)| peer.clone())).collect();
        assert!(have.len() > before, "{} of {CROWD} can have it", before);
        steps += 1;
    }
    assert!(steps <= 6, "{steps} steps");
    let least = parents.values().map(Vec::len).min();
    assert!(least >= Some(5), "{least:?} parents");
}
