//! A crowd on one cold task: how it spreads, in rounds of one piece time.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::swarm::{Answer, Registration, Report};
use damselfly_core::{HostId, Moment, PeerId, PieceNumber};

use super::world::{digest, geometry, host_info, registration};
use crate::{Config, Core, Event, Output};

const CROWD: usize = 2000;

/// What everybody was told since the last look: parents, by peer; and who was sent to the source.
fn drain(core: &mut Core, parents: &mut BTreeMap<PeerId, Vec<PeerId>>, source: &mut Vec<PeerId>) {
    while let Some(output) = core.poll() {
        match output {
            Output::Answer(peer, Answer::Parents { offers, .. }) => {
                parents.insert(peer, offers.into_iter().map(|offer| offer.peer).collect());
            }
            Output::Answer(peer, Answer::GoToSource) => source.push(peer),
            _ => {}
        }
    }
}

#[test]
fn first_copies_multiply_and_the_source_is_asked_once() {
    let mut core = Core::new(Config { children_per_task: 3, ..Config::default() }, 3);
    let (mut parents, mut source) = (BTreeMap::new(), Vec::new());
    let mut now = Moment::START;
    for number in 0..CROWD {
        let name = format!("h{number}");
        core.handle(now, Event::HostAnnounced(host_info(&name)));
        let register = Registration { host: HostId::from(name.as_str()), ..registration(&name) };
        core.handle(now, Event::Register(register));
    }
    drain(&mut core, &mut parents, &mut source);
    let [first] = source.as_slice() else { panic!("one peer goes to the source: {source:?}") };
    let first = first.clone();
    core.handle(now, Event::Report(first.clone(), Report::SourceOpened(geometry())));
    let piece = |parent| Report::PieceFinished { piece: PieceNumber(0), parent, digest: digest(0) };
    core.handle(now, Event::Report(first, piece(None)));
    let mut rounds = 0;
    let mut holders = 1;
    while holders < CROWD {
        drain(&mut core, &mut parents, &mut source);
        let woken = std::mem::take(&mut parents);
        assert!(!woken.is_empty(), "nobody is woken while {holders} of {CROWD} have a piece");
        for (peer, parents) in woken {
            core.handle(now, Event::Report(peer, piece(parents.first().cloned())));
            holders += 1;
        }
        rounds += 1;
        now = now + Duration::from_millis(100);
    }
    assert_eq!(source.len(), 1);
    // Every holder has three slots: at best the holders are four times as many after every round.
    assert!((6..=9).contains(&rounds), "{rounds} rounds");
}
