//! A peer that lies: its pieces never reach a client, and do not stop the download.

use crate::harness::{Daemon, Fleet, Liar, MIB, Origin, Page, Scheduler, random, wait_for};

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

#[test]
fn who_does_not_show_the_fleets_token_takes_no_part_in_it() {
    let origin = Origin::start();
    let token = "the-token-of-this-fleet";
    let scheduler = Scheduler::start_with(&format!("security: {{token: {token}}}\n"));
    let start = |name: &str, token: Option<&str>| {
        let plan = Daemon::plan(name).scheduler(&scheduler);
        token
            .map_or_else(|| Daemon::plan(name).scheduler(&scheduler), |token| plan.set("security.token", token))
            .start()
    };
    let file = random(12 * MIB, 902);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    let first = start("h1", Some(token));
    let task = first.get(&url);
    task.assert_is(&file);
    wait_for("the host to say what it holds", || (scheduler.holders(task.line(TASK)) == 1).then_some(()));
    let sent = origin.sent("/big.bin");
    start("h2", Some(token)).get(&url).assert_is(&file);
    assert!(origin.sent("/big.bin") - sent < 64 << 10, "members share");
    for (name, shown) in [("h3", None), ("h4", Some("the-token-of-another-fleet"))] {
        let sent = origin.sent("/big.bin");
        let stranger = start(name, shown);
        stranger.get(&url).assert_is(&file);
        assert!(origin.sent("/big.bin") - sent >= file.len() as u64, "{name} has it from the origin alone");
        wait_for("the reason in its log", || {
            let log = stranger.process.log();
            (log.contains("this fleet asks for a token") || log.contains("not the token of this fleet")).then_some(())
        });
    }
    for log in [scheduler.process.log(), first.process.log()] {
        assert!(!log.contains(token), "the token stands in a log");
    }
    let hosts = String::from_utf8(scheduler.admin("/api/v1/hosts").body.to_vec()).expect("JSON");
    assert!(hosts.contains("h2") && !hosts.contains("h3") && !hosts.contains("h4"), "{hosts}");
}
