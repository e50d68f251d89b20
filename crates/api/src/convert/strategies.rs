//! Arbitrary nouns for the tests.

use damselfly_core::swarm::{
    Answer, Held, Holding, HostInfo, Offer, Origin, PieceFault, Registration, Report, SourceWish,
};
use damselfly_core::{Blake3, Geometry, HostId, MAX_PIECES, PeerId, PieceDigest, PieceNumber, TaskId};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn host_id() -> impl Strategy<Value = HostId> {
    "[a-z0-9.-]{1,20}".prop_map(HostId::from)
}

fn peer_id() -> impl Strategy<Value = PeerId> {
    "[a-z0-9.-]{1,20}".prop_map(PeerId::from)
}

fn task_id() -> impl Strategy<Value = TaskId> {
    any::<[u8; 32]>().prop_map(TaskId::from_bytes)
}

fn geometry() -> impl Strategy<Value = Geometry> {
    (0u64..1 << 40, 1u64 << 22..1 << 27).prop_map(|(length, piece)| Geometry::new(length, piece).unwrap())
}

fn piece() -> impl Strategy<Value = PieceNumber> {
    (0..MAX_PIECES).prop_map(PieceNumber)
}

fn list() -> impl Strategy<Value = Vec<(PieceNumber, Blake3)>> {
    vec((piece(), any::<[u8; 32]>().prop_map(Blake3)), 0..9)
}

fn held() -> impl Strategy<Value = Held> {
    (geometry(), list()).prop_map(|(geometry, pieces)| Held { geometry, pieces })
}

pub(super) fn origin() -> impl Strategy<Value = Origin> {
    ("[a-z:/?=]{1,30}", of("[a-z\n]{1,9}"), of("[a-z:]{1,9}"), "[a-z]{0,9}", "[a-z]{0,9}", any::<bool>()).prop_map(
        |(url, content, digest, tag, application, private)| Origin {
            url,
            content,
            digest,
            tag,
            application,
            private,
            plain: None,
        },
    )
}

pub(super) fn host() -> impl Strategy<Value = HostInfo> {
    let place = ("[a-z0-9]{0,9}", any::<std::net::IpAddr>(), "[a-z0-9]{0,9}", "[a-z|]{0,9}");
    let ports = (1..=u16::MAX, any::<u16>(), of(any::<std::num::NonZeroU16>()));
    (host_id(), any::<bool>(), place, ports, any::<u32>(), any::<bool>()).prop_map(
        |(id, seed, (hostname, ip, idc, location), (rpc_port, data_port, proxy_port), upload_slots, tls)| HostInfo {
            id,
            seed,
            hostname,
            ip,
            rpc_port,
            data_port,
            proxy_port,
            upload_slots,
            idc,
            location,
            tls,
        },
    )
}

pub(super) fn registration() -> impl Strategy<Value = Registration> {
    let source = prop_oneof![Just(SourceWish::Allowed), Just(SourceWish::Wanted), Just(SourceWish::Forbidden)];
    let who = (host_id(), task_id(), peer_id());
    (who, origin(), of(geometry()), of(held()), source, any::<bool>()).prop_map(
        |((host, task, peer), origin, geometry, held, source, extended)| Registration {
            host,
            task,
            peer,
            origin,
            geometry,
            held,
            source,
            extended,
        },
    )
}

pub(super) fn holding() -> impl Strategy<Value = Holding> {
    (task_id(), peer_id(), origin(), held()).prop_map(|(task, peer, origin, held)| Holding { task, peer, origin, held })
}

pub(super) fn report() -> impl Strategy<Value = Report> {
    let fault = prop_oneof![
        Just(PieceFault::Bad),
        Just(PieceFault::Stalled),
        Just(PieceFault::Gone),
        Just(PieceFault::Missing),
        Just(PieceFault::Slow)
    ];
    let digest =
        (any::<u32>(), any::<[u8; 32]>()).prop_map(|(crc32, bytes)| PieceDigest { crc32, blake3: Blake3(bytes) });
    prop_oneof![
        geometry().prop_map(Report::SourceOpened),
        (piece(), of(peer_id()), digest).prop_map(|(piece, parent, digest)| Report::PieceFinished {
            piece,
            parent,
            digest
        }),
        (piece(), peer_id(), fault).prop_map(|(piece, parent, fault)| Report::PieceFailed { piece, parent, fault }),
        vec(peer_id(), 0..9).prop_map(|failed| Report::Reschedule { failed }),
        Just(Report::SourceFailed),
        Just(Report::SourceProgress),
        piece().prop_map(|piece| Report::Late { piece }),
        piece().prop_map(|piece| Report::Declined { piece }),
        Just(Report::Finished),
        Just(Report::Failed),
    ]
}

pub(super) fn answer() -> impl Strategy<Value = Answer> {
    let offer = (peer_id(), host_id(), any::<std::net::IpAddr>(), 1..=u16::MAX, any::<bool>())
        .prop_map(|(peer, host, ip, port, tls)| Offer { peer, host, rpc: (ip, port).into(), tls });
    prop_oneof![
        Just(Answer::Wait),
        Just(Answer::Empty),
        of((0u32..99, 1u32..99))
            .prop_map(|run| Answer::GoToSource { pieces: run.map(|(first, many)| first..first + many) }),
        vec((piece(), any::<[u8; 32]>().prop_map(Blake3)), 1..9).prop_map(Answer::Proofs),
        (vec(offer, 0..9), of(geometry()), any::<bool>()).prop_map(|(offers, geometry, proven)| Answer::Parents {
            offers,
            geometry,
            proven
        }),
    ]
}
