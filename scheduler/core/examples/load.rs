//! How much the scheduler's machine needs, alone: memory a peer, and the time in which it learns again what a fleet holds.
//!
//! `cargo run --release -p damselfly-scheduler-core --example load -- [HOSTS] [TASKS A HOST]`

use std::process::ExitCode;
use std::time::Instant;

use damselfly_core::swarm::{Held, Holding, HostInfo, Origin, Registration, SourceWish};
use damselfly_core::{Blake3, Geometry, HostId, Moment, PeerId, PieceNumber, TaskId};
use damselfly_scheduler_core::{Config, Core, Event};

const PIECES: u32 = 16;

fn host(number: u32) -> HostInfo {
    let name = format!("10.{}.{}.{}-host{number}", number >> 16, number >> 8 & 255, number & 255);
    HostInfo {
        id: HostId::from(name.as_str()),
        seed: false,
        hostname: format!("host{number}"),
        ip: std::net::Ipv4Addr::from(0x0a00_0000 + number).into(),
        rpc_port: 4000,
        data_port: 4005,
        proxy_port: None,
        upload_slots: 50,
        idc: String::new(),
        location: String::new(),
        tls: false,
    }
}

fn task(number: u32) -> TaskId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    TaskId::from_bytes(bytes)
}

fn origin(number: u32) -> Origin {
    Origin {
        url: format!("https://registry.example.com/v2/team/app/blobs/sha256:{number:064x}"),
        digest: Some(format!("sha256:{number:064x}")),
        ..Origin::default()
    }
}

fn peer(info: &HostInfo, number: u32) -> PeerId {
    PeerId::new(info.ip, &info.hostname, u128::from(number) << 64, false)
}

/// Resident bytes of this process, where the system says.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

fn drain(core: &mut Core) -> usize {
    std::iter::from_fn(|| core.poll()).count()
}

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let (Ok(hosts), Ok(held)) = (numbers.next().unwrap_or(Ok(1000)), numbers.next().unwrap_or(Ok(1000))) else {
        eprintln!("usage: load [HOSTS] [TASKS A HOST]");
        return ExitCode::from(2);
    };
    let peers = u64::from(hosts) * u64::from(held);
    let config = Config { max_peers: usize::MAX, max_tasks: usize::MAX, max_hosts: usize::MAX, ..Config::default() };
    let mut core = Core::new(config, 1);
    let geometry = Geometry::new(u64::from(PIECES) << 20, 1 << 20).expect("a geometry");
    let pieces: Vec<_> = (0..PIECES).map(|piece| (PieceNumber(piece), Blake3([7; 32]))).collect();
    let infos: Vec<HostInfo> = (0..hosts).map(host).collect();
    // A fleet has more tasks than a host: neighbours share most of what they hold.
    let task_of = |host: u32, number: u32| (host / 10) * (held / 10).max(1) + number;

    let (before, begun) = (resident(), Instant::now());
    for (number, info) in (0..hosts).zip(&infos) {
        core.handle(Moment::START, Event::HostAnnounced(info.clone()));
        core.handle(Moment::START, Event::HoldsNothing(info.id.clone()));
        for held in 0..held {
            let of = task_of(number, held);
            let held = Held { geometry, pieces: pieces.clone() };
            let holding = Holding { task: task(of), peer: peer(info, of), origin: origin(of), held };
            core.handle(Moment::START, Event::Held(info.id.clone(), holding));
        }
        drain(&mut core);
    }
    let took = begun.elapsed();
    println!("{hosts} hosts say what they hold, {held} tasks of {PIECES} pieces each: {:.2} s", took.as_secs_f64());
    println!("{:.1} us a holding", took.as_secs_f64() * 1e6 / peers.max(1) as f64);
    if let (Some(before), Some(after)) = (before, resident()) {
        println!("{} bytes resident a peer, {peers} peers", after.saturating_sub(before) / peers.max(1));
    }

    let begun = Instant::now();
    let asked = hosts.min(100_000);
    for (number, info) in (0..asked).zip(infos.iter().cycle().skip(1)) {
        // Of a task that its neighbours hold and it does not.
        let of = task_of(number, held);
        core.handle(
            Moment::START,
            Event::Register(Registration {
                host: info.id.clone(),
                task: task(of),
                peer: peer(info, of),
                origin: origin(of),
                geometry: None,
                held: None,
                source: SourceWish::Allowed,
                extended: true,
            }),
        );
        drain(&mut core);
    }
    println!("{asked} registrations: {:.1} us each", begun.elapsed().as_secs_f64() * 1e6 / f64::from(asked.max(1)));
    ExitCode::SUCCESS
}
