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
    wait_for("the scheduler's lines about it", || {
        let log = fleet.scheduler.process.log();
        let lines = ["a peer had wrong bytes from its parent", "a host is not offered for this task"];
        lines.iter().all(|line| log.contains(line)).then_some(())
    });
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

#[test]
fn the_liar_who_comes_first_does_not_decide_the_bytes() {
    let origin = Origin::start();
    let file = random(20 * MIB + 9, 903);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    // Whoever knows the address can know the task.
    let elsewhere = Daemon::plan("elsewhere").start();
    let task = elsewhere.get(&url).line(TASK).to_string();
    let fleet = Fleet::start(2);
    let liar = Liar::invent(fleet.scheduler.grpc, &task, &url, &file);
    wait_for("the scheduler to believe it", || (fleet.scheduler.holders(&task) == 1).then_some(()));
    for answer in fleet.get_everywhere(&url) {
        answer.assert_is(&file);
    }
    assert_eq!(fleet.hosts[0].get(&url).line(TASK), task, "they asked for what it lied about");
    // At most for what the hosts had read themselves and could check.
    assert!(liar.asked() < 10, "it was asked for {} pieces", liar.asked());
}

#[test]
fn an_impostor_takes_nobodys_part() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(20 * MIB, 904);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    let honest = fleet.hosts[0].get(&url);
    honest.assert_is(&file);
    let task = honest.line(TASK);
    wait_for("the host to say what it holds", || (fleet.scheduler.holders(task) == 1).then_some(()));
    let of_task = || String::from_utf8(fleet.scheduler.admin(&format!("/api/v1/tasks/{task}")).body.to_vec()).unwrap();
    let known: serde_json::Value = serde_json::from_str(&of_task()).unwrap();
    let peer = known["peers"][0]["id"].as_str().unwrap().to_owned();
    Liar::speak_for(fleet.scheduler.grpc, task, &url, &peer);
    assert_eq!(fleet.scheduler.holders(task), 1, "its word ended nobody's part: {}", of_task());
    let sent = origin.sent("/big.bin");
    fleet.hosts[1].get(&url).assert_is(&file);
    assert!(origin.sent("/big.bin") - sent < 64 << 10);
}
