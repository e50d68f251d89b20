//! A peer that lies: its pieces never reach a client, and do not stop the download.

use crate::harness::{Fleet, Liar, MIB, Origin, Page, random};

const TASK: &str = "x-dragonfly-task-id";

#[test]
fn a_liar_beside_an_honest_host_is_found_out() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(40 * MIB + 9, 900);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    let honest = fleet.hosts[0].get(&url);
    honest.assert_is(&file);
    let liar = Liar::join(fleet.scheduler.grpc, honest.line(TASK), &url, &file);
    fleet.hosts[1].get(&url).assert_is(&file);
    assert!(liar.asked() < 40, "the liar was asked {} times", liar.asked());
}

#[test]
fn a_liar_alone_is_found_out_and_the_source_helps() {
    let origin = Origin::start();
    let mut fleet = Fleet::start(2);
    let file = random(20 * MIB + 9, 901);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    let honest = fleet.hosts[0].get(&url);
    honest.assert_is(&file);
    let liar = Liar::join(fleet.scheduler.grpc, honest.line(TASK), &url, &file);
    fleet.hosts[0].process.kill();
    fleet.hosts[1].get(&url).assert_is(&file);
    assert!(liar.asked() > 0, "nobody asked the liar: this proves nothing");
    // What was found out does not come back as a stored piece.
    fleet.hosts[1].get(&url).assert_is(&file);
}
