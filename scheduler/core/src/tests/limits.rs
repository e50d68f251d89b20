//! Room is limited.

use std::time::Duration;

use damselfly_core::swarm::{Holding, Registration};
use damselfly_core::{PeerId, TaskId};

use super::world::{Told, World, held, host, host_info, registration, told};
use crate::{Config, Event, Fact};

fn task(number: u8) -> TaskId {
    TaskId::from_bytes([number; 32])
}

fn hold(world: &mut World, number: u8) {
    let peer = PeerId::from(format!("peer-{number}"));
    let holding = Holding { task: task(number), peer, origin: registration("a").origin, held: held([0]) };
    world.event(Event::Held(host("a"), holding));
    world.pass(Duration::from_secs(1));
}

#[test]
fn the_task_that_was_idle_longest_is_forgotten() {
    let mut world = World::new(Config { max_tasks: 2, ..Config::default() });
    world.announce(host_info("a"));
    for number in [1, 2] {
        hold(&mut world, number);
    }
    hold(&mut world, 1);
    hold(&mut world, 3);
    let left: Vec<_> = world.core.tasks().map(|task| task.id).collect();
    assert_eq!(left, [task(1), task(3)]);
    assert!(world.facts.contains(&Fact::TaskForgotten));
}

#[test]
fn tasks_in_use_are_not_forgotten_and_who_finds_no_room_is_sent_away() {
    for config in [Config { max_tasks: 1, ..Config::default() }, Config { max_peers: 1, ..Config::default() }] {
        let mut world = World::new(config);
        assert_eq!(world.register("a"), [told("a", Told::Source)]);
        let other = Registration { task: task(9), ..registration("b") };
        assert_eq!(world.event(Event::Register(other)), [told("b", Told::End)]);
        assert!(world.facts.contains(&Fact::Refused));
    }
}

#[test]
fn the_host_that_announced_itself_longest_ago_gives_way() {
    let mut world = World::new(Config { max_hosts: 2, ..Config::default() });
    for name in ["a", "b", "a", "c"] {
        world.announce(host_info(name));
        world.pass(Duration::from_secs(1));
    }
    let left: Vec<_> = world.core.hosts().map(|host| host.info.hostname).collect();
    assert_eq!(left, ["a", "c"]);
}

#[test]
fn a_deleted_task_is_gone_with_its_conversations() {
    let mut world = World::with_hosts(&["a"]);
    world.register("a");
    assert_eq!(world.event(Event::TaskDeleted(super::world::task())), [told("a", Told::End)]);
    assert_eq!(world.core.counts().peers, 0);
    assert!(world.core.deadline().is_some(), "the host is still there");
}
