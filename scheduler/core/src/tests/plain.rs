//! Peers of the plain protocol.

use std::time::Duration;

use damselfly_core::swarm::{Report, SourceWish};

use super::world::{PIECES, Told, World, host_info, peer, told};
use crate::Event;

fn register(world: &mut World, name: &str) -> Vec<(String, Told)> {
    world.register_as(name, SourceWish::Allowed, false)
}

#[test]
fn waits_without_a_word_and_is_woken() {
    let mut world = World::with_hosts(&["a", "b"]);
    assert_eq!(register(&mut world, "a"), [told("a", Told::Source)]);
    assert_eq!(register(&mut world, "b"), []);
    assert_eq!(world.piece("a", 0, None), [told("b", Told::Parents(vec!["a".into()], false))]);
    assert_eq!(world.pass(Duration::from_secs(20)), [], "no proofs, and no better offers that it did not ask for");
}

#[test]
fn who_has_not_asked_is_not_answered() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", 0..PIECES);
    register(&mut world, "b");
    world.holds("c", 0..PIECES);
    assert_eq!(world.event(Event::HostLeft(damselfly_core::HostId::from("a"))), []);
    let answers = world.reschedule("b", &["a"]);
    assert_eq!(answers, [told("b", Told::Parents(vec!["c".into()], true))]);
}

#[test]
fn the_last_answer_is_the_source_and_then_the_conversation_is_over() {
    let mut world = World::with_hosts(&["p"]);
    let names: Vec<String> = (0..8).map(|number| format!("h{number}")).collect();
    let mut answers = Vec::new();
    for name in &names {
        world.announce(host_info(name));
        world.holds(name, 0..PIECES);
        let asked = if answers.is_empty() {
            register(&mut world, "p")
        } else {
            let Some((_, Told::Parents(old, _))) = answers.last() else { break };
            let old: Vec<String> = old.clone();
            world.reschedule("p", &old.iter().map(String::as_str).collect::<Vec<_>>())
        };
        answers.extend(asked);
    }
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(answers[4], told("p", Told::Source));
    assert_eq!(world.reschedule("p", &[]), [told("p", Told::End)]);
}

#[test]
fn the_server_ends_the_conversation() {
    for last in [Report::Finished, Report::Failed] {
        let mut world = World::with_hosts(&["a"]);
        register(&mut world, "a");
        world.piece("a", 0, None);
        assert_eq!(world.report("a", last), [told("a", Told::End)]);
        assert_eq!(world.event(Event::PeerGone(peer("a"))), [], "the stream's end says nothing more");
    }
}
