//! The driver with its machine, in paused time.

use std::net::IpAddr;
use std::time::Duration;

use damselfly_core::swarm::{Answer, HostInfo, Origin, Registration, Report, SourceWish};
use damselfly_core::{Geometry, HostId, PeerId, PieceDigest, PieceNumber, TaskId};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::seed::Triggered;
use super::{Config, Handle, NoSeeds, SeedRequest, SeedTrigger, SinceStart, TriggerError};

const LONG: Duration = Duration::from_secs(600);

fn host(name: &str, seed: bool) -> HostInfo {
    HostInfo {
        id: HostId::from(name),
        seed,
        hostname: name.into(),
        ip: IpAddr::from([127, 0, 0, 1]),
        rpc_port: 4000,
        data_port: 4005,
        proxy_port: None,
        upload_slots: 4,
        idc: String::new(),
        location: String::new(),
        tls: false,
    }
}

fn registration(name: &str) -> Registration {
    Registration {
        host: HostId::from(name),
        task: TaskId::from_bytes([1; 32]),
        peer: PeerId::from(format!("peer-{name}")),
        origin: Origin { url: "http://origin/a".into(), ..Origin::default() },
        geometry: None,
        held: None,
        source: SourceWish::Allowed,
        extended: true,
    }
}

fn scheduler() -> Handle {
    Handle::spawn(Config { seed: Some(1), ..Config::default() }, SinceStart::new(), NoSeeds)
}

fn piece() -> Report {
    Report::PieceFinished { piece: PieceNumber(0), parent: None, digest: PieceDigest::of(b"a") }
}

async fn next(answers: &mut mpsc::Receiver<Answer>) -> Option<Answer> {
    timeout(LONG, answers.recv()).await.expect("an answer or the end, and not silence")
}

#[tokio::test(start_paused = true)]
async fn one_reads_the_source_and_the_other_is_woken() {
    let scheduler = scheduler();
    for name in ["a", "b"] {
        scheduler.announce_host(host(name, false)).await.unwrap();
    }
    let (mut to_a, from_a) = scheduler.register(registration("a")).await.unwrap();
    let (mut to_b, _from_b) = scheduler.register(registration("b")).await.unwrap();
    assert_eq!(next(&mut to_a).await, Some(Answer::GoToSource { pieces: None }));
    assert_eq!(next(&mut to_b).await, Some(Answer::Wait));
    from_a.send(Report::SourceOpened(Geometry::new(10, 10).unwrap())).await.unwrap();
    let Some(Answer::Parents { offers, proven: true, .. }) = next(&mut to_b).await else { panic!("no parents") };
    assert_eq!(offers[0].peer, PeerId::from("peer-a"), "who is getting it");
    from_a.send(piece()).await.unwrap();
    let proof = (PieceNumber(0), PieceDigest::of(b"a").blake3);
    assert_eq!(next(&mut to_b).await, Some(Answer::Proofs(vec![proof])));
    let Some(Answer::Parents { offers, .. }) = next(&mut to_a).await else { panic!("no parents") };
    assert_eq!(offers[0].peer, PeerId::from("peer-b"), "it may get some first");
    from_a.send(Report::Finished).await.unwrap();
    // It hears of its own proofs, too; then the scheduler ends the conversation.
    while next(&mut to_a).await.is_some() {}
    assert_eq!(scheduler.snapshot(|core| core.counts().fetching).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_up_is_gone() {
    let scheduler = scheduler();
    let (mut to_a, from_a) = scheduler.register(registration("a")).await.unwrap();
    let (mut to_b, _from_b) = scheduler.register(registration("b")).await.unwrap();
    assert_eq!(next(&mut to_a).await, Some(Answer::GoToSource { pieces: None }));
    assert_eq!(next(&mut to_b).await, Some(Answer::Wait));
    drop(from_a);
    assert_eq!(next(&mut to_b).await, Some(Answer::GoToSource { pieces: None }), "the lease passes on");
    assert_eq!(next(&mut to_a).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_former_conversation_is_over_and_not_heard() {
    let scheduler = scheduler();
    let (mut former, reports) = scheduler.register(registration("a")).await.unwrap();
    let (mut answers, _reports) = scheduler.register(registration("a")).await.unwrap();
    assert_eq!(next(&mut former).await, Some(Answer::GoToSource { pieces: None }));
    assert_eq!(next(&mut former).await, None);
    assert_eq!(next(&mut answers).await, Some(Answer::GoToSource { pieces: None }));
    // It may be too late even to say it; what counts is that it changes nothing.
    let _ = reports.send(Report::Failed).await;
    drop(reports);
    assert_eq!(scheduler.snapshot(|core| core.counts().sourcing).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_hung_up_on() {
    let config = Config { unread_answers: 1, ..Config::default() };
    let scheduler = Handle::spawn(config, SinceStart::new(), NoSeeds);
    scheduler.announce_host(host("a", false)).await.unwrap();
    let (_to_a, from_a) = scheduler.register(registration("a")).await.unwrap();
    let (mut to_b, from_b) = scheduler.register(registration("b")).await.unwrap();
    from_a.send(Report::SourceOpened(Geometry::new(10, 10).unwrap())).await.unwrap();
    from_a.send(piece()).await.unwrap();
    timeout(LONG, from_b.closed()).await.expect("it is hung up on");
    assert_eq!(next(&mut to_b).await, Some(Answer::Wait));
    assert_eq!(next(&mut to_b).await, None);
    assert_eq!(scheduler.snapshot(|core| core.counts().peers).await, Ok(1));
}

/// Tells the test which seeds are asked, and refuses or goes on for ever.
struct Seeds {
    asked: mpsc::UnboundedSender<SeedRequest>,
    refuse: bool,
}

impl SeedTrigger for Seeds {
    fn trigger(&self, request: SeedRequest) -> Triggered {
        self.asked.send(request).unwrap();
        let refuse = self.refuse;
        Box::pin(async move { if refuse { Err(TriggerError("no".into())) } else { std::future::pending().await } })
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_that_refuses_or_does_not_come_is_replaced_by_the_peer() {
    for (refuse, limit) in [(true, 8), (false, 8), (false, 0)] {
        let (asked, mut requests) = mpsc::unbounded_channel();
        let config = Config { triggered_seeds: limit, ..Config::default() };
        let scheduler = Handle::spawn(config.clone(), SinceStart::new(), Seeds { asked, refuse });
        scheduler.announce_host(host("seed", true)).await.unwrap();
        let (mut answers, _reports) = scheduler.register(registration("a")).await.unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(next(&mut answers).await, Some(Answer::Wait));
        assert_eq!(
            next(&mut answers).await,
            Some(Answer::GoToSource { pieces: None }),
            "refuse {refuse}, limit {limit}"
        );
        let waited = if refuse || limit == 0 { Duration::ZERO } else { config.core.seed_time };
        assert!(begun.elapsed() >= waited && begun.elapsed() < waited + Duration::from_millis(50));
        assert_eq!(requests.try_recv().is_ok(), limit > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_its_last_handle_and_conversation() {
    let scheduler = scheduler();
    let (mut answers, reports) = scheduler.register(registration("a")).await.unwrap();
    drop(scheduler);
    assert_eq!(next(&mut answers).await, Some(Answer::GoToSource { pieces: None }));
    // It says that nothing came, and sends it there again.
    for _ in 0..10 {
        match timeout(LONG, answers.recv()).await {
            Ok(answer) => assert!(answer.is_some(), "a conversation keeps the driver"),
            Err(_) => break,
        }
    }
    drop(reports);
    assert_eq!(next(&mut answers).await, None);
}
