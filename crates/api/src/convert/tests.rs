//! Both directions, plain peers and schedulers, and the limits.

use std::time::Duration;

use damselfly_core::swarm::{Answer, Held, Holding, Holdings, Origin, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{Blake3, Geometry, PeerId, PieceDigest, PieceNumber};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::common::{Download, Host, Peer, Piece, Task};
use crate::dfdaemon::{SyncPiecesRequest, SyncPiecesResponse};
use crate::scheduler::announce_peer_request::Request;
use crate::scheduler::announce_peer_response::Response;
use crate::scheduler::{
    AnnounceHostRequest, AnnouncePeerRequest, AnnouncePeerResponse, DownloadPieceFinishedRequest, NormalTaskResponse,
    RegisterPeerRequest,
};

const MIB: u64 = 1 << 20;

/// What the other end decodes.
fn sent<M: Message + Default>(message: &M) -> M {
    let bytes = message.encode_to_vec();
    assert!(bytes.len() <= MAX_MESSAGE, "{} bytes", bytes.len());
    M::decode(bytes.as_slice()).unwrap()
}

fn registration(extended: bool) -> Registration {
    Registration {
        host: "h".into(),
        task: TaskId::from_bytes([7; 32]),
        peer: "p".into(),
        origin: Origin { url: "http://o/x".into(), ..Origin::default() },
        geometry: None,
        held: None,
        source: SourceWish::Allowed,
        extended,
    }
}

fn spoken(voice: &mut Voice, report: Report) -> Vec<PeerSays> {
    voice.say(report).iter().map(|message| peer_says(sent(message)).unwrap()).collect()
}

fn names(messages: &[AnnouncePeerRequest]) -> Vec<String> {
    let name = |message: &AnnouncePeerRequest| format!("{:?}", message.request.as_ref().unwrap());
    messages.iter().map(name).map(|text| text.split('(').next().unwrap().to_owned()).collect()
}

proptest! {
    #[test]
    fn hosts_come_back(host in strategies::host(), seconds in 0u64..1 << 30) {
        let interval = Duration::from_secs(seconds);
        let back = host_from_wire(sent(&host_to_wire(&host, interval))).unwrap();
        prop_assert_eq!(back, (host, Some(interval)));
    }

    #[test]
    fn registrations_come_back(registration in strategies::registration()) {
        let says = peer_says(sent(&registration_to_wire(&registration))).unwrap();
        let PeerSays::Register { registration: mut back, metadata_only: false } = says else {
            return Err(TestCaseError::fail(format!("{says:?}")));
        };
        if !registration.extended {
            // What is kept for plain seeds is tested apart.
            back.origin.plain = None;
            back.origin.private = registration.origin.private;
        }
        prop_assert_eq!(*back, registration);
    }

    #[test]
    fn holdings_come_back(holdings in proptest::collection::vec(strategies::holding(), 0..9), all: bool) {
        let holdings = Holdings { host: "h".into(), all, list: holdings };
        let requests = holdings_to_wire(&holdings);
        prop_assert_eq!(requests.len(), 1);
        prop_assert_eq!(holdings_from_wire(sent(&requests[0])).unwrap(), holdings);
    }

    #[test]
    fn seed_wishes_come_back(origin in strategies::origin(), length in proptest::option::of(0u64..1 << 40)) {
        let geometry = length.map(|length| Geometry::of_length(length).unwrap());
        let wish = SeedWish { origin, geometry };
        prop_assert_eq!(seed_wish_from_wire(sent(&seed_wish_to_wire(&wish))).unwrap(), wish);
    }

    #[test]
    fn reports_come_back_from_an_extended_scheduler(report in strategies::report()) {
        let mut voice = Voice::new(&registration(true), true);
        let mut heard = spoken(&mut voice, report.clone());
        heard.retain(|says| *says != PeerSays::Nothing);
        prop_assert_eq!(heard, vec![PeerSays::Report(report)]);
    }

    #[test]
    fn answers_come_back(answer in strategies::answer()) {
        let messages = Listener::of(&registration(true)).messages(answer.clone());
        prop_assert_eq!(messages.len(), 1);
        prop_assert_eq!(answer_from_wire(sent(&messages[0])), Ok(Some(answer)));
    }

    #[test]
    fn no_bytes_make_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = AnnouncePeerRequest::decode(bytes.as_slice()) {
            let _ = peer_says(message);
        }
        if let Ok(message) = AnnouncePeerResponse::decode(bytes.as_slice()) {
            let _ = Voice::new(&registration(true), false).hear(message);
        }
    }
}

#[test]
fn what_is_too_long_comes_in_several_messages() {
    let geometry = Geometry::new(200_000, 1).unwrap();
    let pieces: Vec<_> = geometry.pieces().map(|piece| (piece, Blake3([piece.0 as u8; 32]))).collect();
    let holding = Holding {
        task: TaskId::from_bytes([1; 32]),
        peer: "p".into(),
        origin: Origin { url: "u".repeat(MAX_URL), content: Some("c".repeat(MAX_IDENTITY)), ..Origin::default() },
        held: Held { geometry, pieces: pieces.clone() },
    };
    let few = Holding { held: Held { geometry, pieces: Vec::new() }, ..holding.clone() };
    let list = [vec![holding.clone(); 2], vec![few; 100]].concat();
    let requests = holdings_to_wire(&Holdings { host: "h".into(), all: true, list });
    let back: Vec<_> = requests.iter().map(|request| holdings_from_wire(sent(request)).unwrap()).collect();
    assert_eq!(back.iter().filter(|holdings| holdings.all).count(), 1, "only the first begins anew");
    assert!(back[0].all);
    let back: Vec<_> = back.into_iter().flat_map(|holdings| holdings.list).collect();
    assert_eq!(back.len(), 4 + 4 + 100);
    assert_eq!(back[..4].iter().flat_map(|part| part.held.pieces.clone()).collect::<Vec<_>>(), pieces);
    assert!(back[8..].iter().all(|dropped| dropped.held.pieces.is_empty() && dropped.task == holding.task));

    let messages = Listener::of(&registration(true)).messages(Answer::Proofs(pieces.clone()));
    let proofs = messages.iter().map(|message| answer_from_wire(sent(message)).unwrap().unwrap());
    let listed: Vec<_> =
        proofs.flat_map(|answer| if let Answer::Proofs(list) = answer { list } else { vec![] }).collect();
    assert_eq!(listed, pieces);

    let registration = Registration { held: Some(holding.held), ..registration(true) };
    let PeerSays::Register { registration, .. } = peer_says(sent(&registration_to_wire(&registration))).unwrap() else {
        panic!("a registration");
    };
    assert_eq!(registration.held.unwrap().pieces, pieces[..MAX_LISTED]);
}

#[test]
fn a_plain_peer_hears_nothing_of_ours() {
    let plain = Listener::of(&registration(false));
    assert_eq!(plain.messages(Answer::Wait), []);
    assert_eq!(plain.messages(Answer::Proofs(vec![(PieceNumber(0), Blake3([1; 32]))])), []);
    assert_eq!(plain.messages(Answer::GoToSource { pieces: None }).len(), 1);
}

#[test]
fn a_plain_child_finds_what_it_reads_of_its_parents() {
    let Answer::Parents { mut offers, .. } = parents(1) else { unreachable!() };
    let geometry = Geometry::of_length(9 * MIB).ok();
    let answer = Answer::Parents { offers: vec![offers.remove(0)], geometry, proven: true };
    let messages = Listener::of(&registration(false)).messages(answer);
    let Some(Response::NormalTaskResponse(response)) = &messages[0].response else { panic!("parents") };
    let parent = &response.candidate_parents[0];
    let host = parent.host.as_ref().unwrap();
    assert_eq!((parent.id.as_str(), host.id.as_str(), host.ip.as_str(), host.port), ("p0", "h0", "10.0.0.1", 4000));
    let task = parent.task.as_ref().unwrap();
    assert_eq!((task.content_length, task.piece_count, task.url.as_str()), (9 * MIB, 3, "http://o/x"));
}

fn parents(count: u16) -> Answer {
    let offers = (0..count).map(|n| damselfly_core::swarm::Offer {
        peer: format!("p{n}").into(),
        host: format!("h{n}").into(),
        rpc: ([10, 0, 0, 1], 4000 + n).into(),
        tls: false,
    });
    Answer::Parents { offers: offers.collect(), geometry: None, proven: false }
}

#[test]
fn a_plain_scheduler_hears_the_whole_ceremony_and_nothing_of_ours() {
    let mut voice = Voice::new(&registration(true), false);
    let normal = Listener::of(&registration(true)).messages(parents(2)).remove(0);
    let heard = voice.hear(sent(&normal)).unwrap();
    assert_eq!(heard.answer, Some(parents(2)));
    assert_eq!(names(&[heard.reply.unwrap()]), ["DownloadPeerStartedRequest"]);

    let again = voice.say(Report::Reschedule { failed: vec!["p1".into(), "unknown".into()] });
    let Some(Request::ReschedulePeerRequest(request)) = &again[0].request else { panic!("{again:?}") };
    let Some(Response::NormalTaskResponse(normal)) = normal.response else { panic!("parents") };
    assert_eq!(request.candidate_parents, normal.candidate_parents[1..], "its own words, whole");

    let opened = voice.say(Report::SourceOpened(Geometry::new(10, 4).unwrap()));
    assert_eq!(names(&opened), ["DownloadPeerBackToSourceStartedRequest"]);
    let digest = PieceDigest::of(b"ab");
    let piece = voice.say(Report::PieceFinished { piece: PieceNumber(2), parent: None, digest });
    let Some(Request::DownloadPieceBackToSourceFinishedRequest(said)) = &piece[0].request else { panic!("{piece:?}") };
    let said = said.piece.as_ref().unwrap();
    assert_eq!((said.number, said.offset, said.length), (2, 8, 2));
    assert_eq!(said.digest, format!("crc32:{}", digest.crc32));
    assert_eq!(names(&voice.say(Report::SourceFailed)), ["DownloadPeerBackToSourceFailedRequest"]);
    assert_eq!(names(&voice.say(Report::Finished)), ["DownloadPeerBackToSourceFinishedRequest"]);
}

#[test]
fn the_end_is_said_as_the_plain_protocol_wants_it() {
    let go = Listener::of(&registration(true)).messages(Answer::GoToSource { pieces: None }).remove(0);
    for (sourcing, report, want) in [
        (false, Report::Finished, "DownloadPeerFinishedRequest"),
        (false, Report::Failed, "DownloadPeerFailedRequest"),
        (true, Report::Finished, "DownloadPeerBackToSourceFinishedRequest"),
        (true, Report::Failed, "DownloadPeerBackToSourceFailedRequest"),
    ] {
        let mut voice = Voice::new(&registration(true), true);
        if sourcing {
            let reply = voice.hear(go.clone()).unwrap().reply.unwrap();
            assert_eq!(names(&[reply]), ["DownloadPeerBackToSourceStartedRequest"]);
            assert_eq!(voice.hear(go.clone()).unwrap().reply, None, "said once");
        }
        assert_eq!(names(&voice.say(report)), [want]);
    }
}

#[test]
fn a_plain_schedulers_task_tells_how_it_is_cut_if_the_default_fits() {
    for (length, count, want) in
        [(9 * MIB, 3, Geometry::of_length(9 * MIB).ok()), (9 * MIB, 4, None), (0, 0, None), (u64::MAX, 3, None)]
    {
        let task = Task { content_length: length, piece_count: count, ..Task::default() };
        let nameless = Peer { task: Some(task.clone()), ..Peer::default() };
        let by_name = Peer {
            id: "p".into(),
            host: Some(Host { id: "h".into(), ip: "host.name".into(), port: 4000, ..Host::default() }),
            task: Some(task),
            ..Peer::default()
        };
        let normal = NormalTaskResponse { candidate_parents: vec![nameless, by_name], ..Default::default() };
        let message = AnnouncePeerResponse { response: Some(Response::NormalTaskResponse(normal)) };
        let want = Answer::Parents { offers: vec![], geometry: want, proven: false };
        assert_eq!(answer_from_wire(message), Ok(Some(want)), "unreachable parents are left out; {length}, {count}");
    }
}

#[test]
fn plain_reports_are_understood() {
    let says = |request| peer_says(AnnouncePeerRequest { request: Some(request), ..Default::default() });
    let piece = Piece { number: 3, digest: "crc32:77".into(), ..Piece::default() };
    let finished = |piece: &Piece| {
        says(Request::DownloadPieceFinishedRequest(DownloadPieceFinishedRequest { piece: Some(piece.clone()) }))
    };
    let digest = PieceDigest { crc32: 77, blake3: Blake3([0; 32]) };
    let report = |parent: Option<&str>| {
        let parent = parent.map(PeerId::from);
        Ok(PeerSays::Report(Report::PieceFinished { piece: PieceNumber(3), parent, digest }))
    };
    assert_eq!(finished(&piece), report(None));
    assert_eq!(finished(&Piece { parent_id: Some("p".into()), ..piece.clone() }), report(Some("p")));
    assert_eq!(finished(&Piece { number: u32::MAX, ..piece.clone() }), Err(WireError::Invalid("piece number")));
    assert_eq!(finished(&Piece { blake3: Some(b"short"[..].into()), ..piece }), Err(WireError::Invalid("blake3")));

    let failed =
        crate::scheduler::DownloadPieceFailedRequest { parent_id: "p".into(), temporary: true, ..Default::default() };
    let want = Report::PieceFailed { piece: PieceNumber(0), parent: "p".into(), fault: PieceFault::Gone };
    assert_eq!(says(Request::DownloadPieceFailedRequest(failed)), Ok(PeerSays::Report(want)));
    assert_eq!(peer_says(AnnouncePeerRequest::default()), Err(WireError::Missing("request")));
}

#[test]
fn a_plain_seed_that_only_wants_to_be_known_has_everything() {
    let download = Download {
        url: "http://o/x".into(),
        metadata_only: true,
        actual_content_length: Some(9 * MIB),
        actual_piece_length: Some(4 * MIB),
        ..Download::default()
    };
    let register = RegisterPeerRequest { download: Some(download), ..RegisterPeerRequest::default() };
    let (registration, metadata_only) =
        registration_from_wire("h".into(), &"a".repeat(64), "p".into(), register).unwrap();
    assert!(metadata_only && !registration.extended);
    assert_eq!(registration.held.unwrap().pieces.len(), 3);
    assert_eq!(answer_from_wire(metadata_only_answer()), Ok(None));
}

fn metadata_only_answer() -> AnnouncePeerResponse {
    sent(&metadata_only())
}

#[test]
fn registrations_that_make_no_sense_are_refused() {
    let read = |host: &str, task: &str, peer: &str, download: Download| {
        let register = RegisterPeerRequest { download: Some(download), ..RegisterPeerRequest::default() };
        registration_from_wire(host.into(), task, peer.into(), register).map(|_| ())
    };
    let (task, long) = ("a".repeat(64), "x".repeat(MAX_NAME + 1));
    let good = Download { url: "http://o/x".into(), ..Download::default() };
    let with = |change: fn(&mut Download)| {
        let mut download = good.clone();
        change(&mut download);
        download
    };
    assert_eq!(read("h", &task, "p", good.clone()), Ok(()));
    for (host, task, peer, download, want) in [
        ("", &task, "p", good.clone(), WireError::Missing("host_id")),
        (&long, &task, "p", good.clone(), WireError::TooLong("host_id")),
        ("h", &long, "p", good.clone(), WireError::Invalid("task_id")),
        ("h", &task, "", good.clone(), WireError::Missing("peer_id")),
        ("h", &task, "p", with(|d| d.url = "u".repeat(MAX_URL + 1)), WireError::TooLong("url")),
        ("h", &task, "p", with(|d| d.tag = Some("t".repeat(MAX_LABEL + 1))), WireError::TooLong("tag")),
        (
            "h",
            &task,
            "p",
            with(|d| (d.actual_content_length, d.actual_piece_length) = (Some(u64::MAX), Some(1))),
            WireError::Invalid("piece_length"),
        ),
    ] {
        assert_eq!(read(host, task, peer, download), Err(want));
    }
}

#[test]
fn hosts_that_make_no_sense_are_refused() {
    let good = Host { id: "h".into(), ip: "10.0.0.1".into(), port: 4000, ..Host::default() };
    let read = |host: Host| {
        let request = crate::scheduler::AnnounceHostRequest { host: Some(host), interval: None };
        host_from_wire(request).map(|(host, _)| host.upload_slots)
    };
    assert_eq!(read(good.clone()), Ok(50));
    assert_eq!(read(Host { disable_shared: true, ..good.clone() }), Ok(0));
    assert_eq!(read(Host { ip: "name".into(), ..good.clone() }), Err(WireError::Invalid("host.ip")));
    for port in [0, -1, 65_536] {
        assert_eq!(read(Host { port, ..good.clone() }), Err(WireError::Invalid("host.port")));
    }
}

#[test]
fn lists_of_pieces_are_bounded_and_whole() {
    let held = |numbers: Vec<u32>, blake3: Vec<u8>| {
        let held = crate::scheduler::HeldPieces { content_length: 10, piece_length: 1, numbers, blake3: blake3.into() };
        super::hold::held_from_wire(held).map(|held| held.pieces.len())
    };
    assert_eq!(held(vec![1, 2], vec![0; 64]), Ok(2));
    assert_eq!(held(vec![1, 2], vec![]), Ok(2));
    assert_eq!(held(vec![1, 2], vec![0; 32]), Err(WireError::Invalid("blake3")));
    assert_eq!(held(vec![1], vec![0; 33]), Err(WireError::Invalid("blake3")));
    assert_eq!(held(vec![0; MAX_LISTED + 1], vec![]), Err(WireError::TooLong("piece numbers")));
}

#[test]
fn parents_say_where_they_serve_a_piece() {
    let geometry = Geometry::new(10, 4).unwrap();
    let piece = ParentPiece { number: PieceNumber(2), data_addr: "[::1]:4005".parse().unwrap() };
    let message = sent(&parent_piece_to_wire(piece, geometry).unwrap());
    assert_eq!((message.offset, message.length), (8, 2));
    assert_eq!(parent_piece_from_wire(&message), Ok(piece));
    assert_eq!(parent_piece_to_wire(ParentPiece { number: PieceNumber(3), ..piece }, geometry), None);
    for (message, want) in [
        (SyncPiecesResponse { tcp_port: None, ..message.clone() }, WireError::Missing("tcp_port")),
        (SyncPiecesResponse { tcp_port: Some(0), ..message.clone() }, WireError::Invalid("tcp_port")),
        (SyncPiecesResponse { ip: "name".into(), ..message.clone() }, WireError::Invalid("ip")),
        (SyncPiecesResponse { number: u32::MAX, ..message }, WireError::Invalid("piece number")),
    ] {
        assert_eq!(parent_piece_from_wire(&message), Err(want));
    }
}

#[test]
fn children_ask_for_some_pieces_or_all() {
    let task = TaskId::from_bytes([9; 32]);
    let all = sent(&all_pieces_to_wire(&"h".into(), &task, 3));
    assert_eq!(all.interested_piece_numbers, [0, 1, 2]);
    assert_eq!(pieces_wanted_from_wire(&all), Ok(PiecesWanted { task, pieces: None }));
    let some = SyncPiecesRequest { all_pieces: false, ..all };
    let numbers = (0..3).map(PieceNumber).collect();
    assert_eq!(pieces_wanted_from_wire(&some), Ok(PiecesWanted { task, pieces: Some(numbers) }));
    let many = SyncPiecesRequest { interested_piece_numbers: vec![0; MAX_LISTED + 1], ..some };
    assert_eq!(pieces_wanted_from_wire(&many), Err(WireError::TooLong("interested_piece_numbers")));
}

#[test]
fn a_scheduler_says_that_it_knows_our_extensions() {
    let mut headers = MetadataMap::new();
    assert!(!is_extended(&headers));
    mark_extended(&mut headers);
    assert!(is_extended(&headers));
    assert_eq!(run_of(&headers), None);
    mark_run(&mut headers, 7);
    assert_eq!(run_of(&headers), Some(7));
}

/// The registration of a peer of the plain protocol, as its scheduler reads it.
fn plain_registration(download: Download) -> Registration {
    let register = RegisterPeerRequest { download: Some(download), ..RegisterPeerRequest::default() };
    let message = AnnouncePeerRequest {
        host_id: "h".into(),
        task_id: "ab".repeat(32),
        peer_id: "p".into(),
        request: Some(Request::RegisterPeerRequest(register)),
    };
    match peer_says(sent(&message)).unwrap() {
        PeerSays::Register { registration, .. } => *registration,
        says => panic!("{says:?}"),
    }
}

#[test]
fn a_plain_seed_is_asked_in_the_words_of_the_plain_child() {
    use crate::common::{HuggingFace, ModelScope, ObjectStorage, OpenCsg, SchedulingPolicy};
    let told = Download {
        url: "https://o.example.com/x?sig=1&part=2".into(),
        tag: Some("t".into()),
        application: Some("a".into()),
        content_for_calculating_task_id: Some("c".into()),
        filtered_query_params: vec!["sig".into()],
        piece_length: Some(8 << 20),
        enable_task_id_based_blob_digest: true,
        object_storage: Some(ObjectStorage { region: Some("r".into()), ..ObjectStorage::default() }),
        hugging_face: Some(HuggingFace { revision: "main".into(), ..HuggingFace::default() }),
        model_scope: Some(ModelScope { revision: "v1".into(), ..ModelScope::default() }),
        open_csg: Some(OpenCsg { revision: "v2".into(), ..OpenCsg::default() }),
        scheduling_policy: SchedulingPolicy::Always.into(),
        ..Download::default()
    };
    let origin = plain_registration(Download {
        request_header: [("accept".to_owned(), "*/*".to_owned())].into(),
        remote_ip: Some("10.0.0.1".into()),
        concurrent_piece_count: Some(4),
        ..told.clone()
    })
    .origin;
    let asked = sent(&seed_wish_to_wire(&SeedWish { origin, geometry: None })).download.unwrap();
    assert_eq!(asked, Download { need_back_to_source: true, ..told });
}

#[test]
fn what_is_fetched_with_credentials_is_private_to_its_host() {
    use crate::common::{HuggingFace, ObjectStorage, OpenCsg};
    let header = |name: &str| [(name.to_owned(), "s3cret".to_owned())].into();
    let token = || Some("s3cret".to_owned());
    for private in [
        Download { request_header: header("Authorization"), ..Download::default() },
        Download { request_header: header("cookie"), ..Download::default() },
        Download { request_header: header("X-JFrog-Art-Api-Key"), ..Download::default() },
        Download { request_header: header("x-amz-security-token"), ..Download::default() },
        Download {
            object_storage: Some(ObjectStorage { access_key_secret: token(), ..ObjectStorage::default() }),
            ..Download::default()
        },
        Download { hugging_face: Some(HuggingFace { token: token(), ..Default::default() }), ..Download::default() },
        Download { open_csg: Some(OpenCsg { token: token(), ..Default::default() }), ..Download::default() },
        Download { certificate_chain: vec![vec![1].into()], ..Download::default() },
    ] {
        let told = format!("{private:?}");
        let origin = plain_registration(private).origin;
        assert!(origin.private && origin.plain.is_none(), "{told}");
    }
    for open in ["accept", "user-agent", "range", "x-dragonfly-tag"] {
        let open = Download { request_header: header(open), ..Download::default() };
        assert!(!plain_registration(open).origin.private);
    }
}

#[test]
fn a_seed_finds_a_blobs_digest_in_its_url() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let blob = format!("https://r.example.com/v2/library/alpine/blobs/{digest}");
    let wish = |url: &str, enable: bool, content: Option<&str>| {
        let download = Download {
            url: url.to_owned(),
            enable_task_id_based_blob_digest: enable,
            content_for_calculating_task_id: content.map(Into::into),
            ..Download::default()
        };
        let request = crate::dfdaemon::DownloadTaskRequest { download: Some(download) };
        seed_wish_from_wire(request).unwrap().origin.digest
    };
    assert_eq!(wish(&blob, true, None), Some(digest.clone()));
    assert_eq!(wish(&format!("{blob}?ns=r.example.com"), true, None), Some(digest.clone()));
    assert_eq!(wish(&blob, false, None), None, "the child's task is named by its URL");
    assert_eq!(wish(&blob, true, Some("c")), None, "the child's task is named by its text");
    for other in [
        "https://r.example.com/v2/library/alpine/manifests/latest".to_owned(),
        format!("https://r.example.com/v2/blobs/{digest}"),
        format!("https://r.example.com/x?u=/v2/a/blobs/{digest}"),
        blob.to_uppercase(),
        format!("{blob}0"),
    ] {
        assert_eq!(wish(&other, true, None), None, "{other}");
    }
}

#[test]
fn a_listed_host_has_what_its_users_make_a_proxy_address_of() {
    let announced = AnnounceHostRequest {
        host: Some(Host {
            id: "10.0.0.1-a-seed".into(),
            r#type: 1,
            hostname: "a".into(),
            ip: "10.0.0.1".into(),
            port: 4000,
            proxy_port: 4001,
            ..Host::default()
        }),
        ..AnnounceHostRequest::default()
    };
    let (host, _) = host_from_wire(announced).unwrap();
    let listed = sent(&list_hosts([host].iter())[0]);
    assert_eq!((listed.ip.as_str(), listed.proxy_port, listed.name.as_str()), ("10.0.0.1", 4001, "a"));
}
