//! Clients that send too much, too slowly, or nonsense.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasmorch_gateway::ErrorClass;

use crate::support::*;

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.header_timeout = Duration::from_millis(100);
        config.limits.idle_timeout = Duration::from_millis(200);
    });
    let first = "GET / HTTP/1.1\r\nhost: shop.example.com\r\n";
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let whole = format!("{first}\r\n");
    let second = format!("{whole}{first}x-slow: ");
    for sent in ["", "G", "PRI * HT", preface, first, &whole, &second] {
        let mut stream = TcpStream::connect(host.http).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        let answered = String::from_utf8_lossy(&answer).matches("hello").count();
        assert_eq!(answered, usize::from(sent.starts_with(&whole)), "{sent:?}");
    }
    until("all are gone", || {
        host.gateway.stats().connections_open == 0
    })
    .await;
    host.stop().await;
}

#[tokio::test]
async fn a_further_head_that_dribbles_is_cut_off() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.header_timeout = Duration::from_millis(200);
    });
    let mut stream = TcpStream::connect(host.http).await.unwrap();
    let whole = b"GET / HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(whole).await.unwrap();
        let mut answer = [0; 1024];
        let read = within(stream.read(&mut answer)).await.unwrap();
        assert!(String::from_utf8_lossy(&answer[..read]).contains("hello"));
    }
    stream.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    let began = std::time::Instant::now();
    let gone = async {
        // The connection may rest for 75 s; one more byte now and then makes no difference.
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(gone).await;
    assert!(began.elapsed() < Duration::from_secs(15));
    host.stop().await;
}

#[tokio::test]
async fn a_request_may_take_longer_than_a_head() {
    let host = Host::start_with(
        "a",
        1,
        handler(|request| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(http::Response::new(request.into_body()))
        }),
        |config| {
            config.limits.header_timeout = Duration::from_millis(50);
            config.limits.idle_timeout = Duration::from_millis(50);
        },
    );
    assert_eq!(get(host.http).await.0, 200);
    host.stop().await;
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.header_bytes_max = 16 << 10
    });
    let large = format!("x-large: {}", "x".repeat(20 << 10));
    let answer = ask(host.http, "GET /", &["host: shop.example.com", &large]).await;
    assert_eq!(status(&answer), 431, "{answer}");
    let many = vec!["x-many: x"; 200];
    assert_eq!(status(&ask(host.http, "GET /", &many).await), 431);
    let mut client = H2::connect(host.http).await;
    let request = Request::get("http://shop.example.com/").header("x-large", &large[9..]);
    // Told by a status or by a reset, as the library has it.
    if let Ok(response) = client.send(request.body(empty()).unwrap()).await {
        assert_eq!(
            response.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
    }
    assert_eq!(host.calls(), 0);
    drop(client);
    host.stop().await;
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let host = Host::start("a", 1, says("hello"));
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let openings: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"\x16\x03\x01\x02\0\x01\0",
        b"POST / HTTP/1.1\r\nhost: shop.example.com\r\ntransfer-encoding: chunked\r\n\r\n",
    ];
    for round in 0..150 {
        let mut bytes = openings[round % openings.len()].to_vec();
        bytes.extend((0..rng.random_range(1..300)).map(|_| rng.random::<u8>()));
        for address in [host.http, host.peer] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let _ = within(stream.read_to_end(&mut Vec::new())).await;
        }
    }
    assert_eq!(get(host.http).await, (200, "hello".to_owned()));
    until("all are gone", || {
        host.gateway.stats().connections_open == 0
    })
    .await;
    host.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let host = Host::start_with("a", 1, says("hello"), |config| {
        config.limits.connections_max = 2
    });
    let held = (
        TcpStream::connect(host.http).await.unwrap(),
        TcpStream::connect(host.http).await.unwrap(),
    );
    until("both are accepted", || {
        host.gateway.stats().connections_open == 2
    })
    .await;
    let (answer, text) = get(host.http).await;
    assert_eq!((answer, text.len()), (503, 50));
    assert_eq!(host.gateway.stats().connections_refused, 1);
    drop(held);
    until("they are gone", || {
        host.gateway.stats().connections_open == 0
    })
    .await;
    assert_eq!(get(host.http).await.0, 200);
    host.stop().await;
}

#[tokio::test]
async fn a_connection_that_rests_makes_room_for_a_new_one() {
    let host = Host::start_with("a", 1, hangs_when_told(), |config| {
        config.limits.connections_max = 2;
        config.limits.drain = Duration::ZERO;
    });
    let request = |path: &str| {
        let request = Request::get(path).header("host", "shop.example.com");
        request.body(empty()).unwrap()
    };
    let mut resting = H1::connect(host.http).await;
    text(resting.send(request("/")).await.unwrap()).await;
    let mut working = H1::connect(host.http).await;
    let hangs = tokio::spawn(async move { working.send(request("/hang")).await.is_err() });
    until("it is in hand", || host.calls() == 2).await;
    assert_eq!(get(host.http).await, (200, "hello".to_owned()));
    assert_eq!(host.gateway.stats().connections_refused, 0);
    assert!(resting.send(request("/")).await.is_err(), "it is gone");
    assert!(!hangs.is_finished(), "and who is served stays");
    host.stop().await;
    assert!(within(hangs).await.unwrap());
}

#[tokio::test]
async fn one_request_too_many_is_told_so() {
    let host = Host::start_with("a", 1, hangs(), |config| {
        config.limits.requests_max = 1;
        config.limits.drain = Duration::ZERO;
    });
    let mut held = TcpStream::connect(host.http).await.unwrap();
    held.write_all(b"GET / HTTP/1.1\r\nhost: shop.example.com\r\n\r\n")
        .await
        .unwrap();
    until("it is in hand", || host.calls() == 1).await;
    let answer = ask(host.http, "GET /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("wasmorch-error: overloaded\r\n") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    assert_eq!(host.gateway.stats().errors_of(ErrorClass::Overloaded), 1);
    host.stop().await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_nothing_else() {
    let host = Host::start_with("a", 1, hangs(), |config| {
        config.limits.drain = Duration::ZERO
    });
    let mut stream = TcpStream::connect(host.http).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream_id in (1_u32..4000).step_by(2) {
        // GET, http, /, and an authority that is routed; then its reset.
        let block = b"\x82\x86\x84\x41\x10shop.example.com";
        bytes.extend([0, 0, block.len() as u8, 1, 5]);
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend(block);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend([0, 0, 0, 8]);
    }
    let _ = stream.write_all(&bytes).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    until("nothing is in hand", || {
        let stats = host.gateway.stats();
        stats.in_flight == 0 && stats.connections_open == 0
    })
    .await;
    // The library ends it before it has handed many of them on.
    assert!(host.calls() <= 100, "{}", host.calls());
    host.stop().await;
}

/// Hangs for `/hang`, else answers.
fn hangs_when_told() -> Handle {
    handler(|request| async move {
        if request.uri().path() == "/hang" {
            std::future::pending::<()>().await;
        }
        Ok(http::Response::new(full("hello")))
    })
}

/// Requests that are reset once the replica has them; how many, before the connection is closed.
async fn resets(at: std::net::SocketAddr, host: &Host, most: u32) -> u32 {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let before = host.calls();
    for number in 0..most {
        let request = Request::get("http://shop.example.com/hang").body(());
        let asked = async {
            client = client.clone().ready().await?;
            client.send_request(request.unwrap(), true)
        };
        let Ok((_answer, mut stream)) = within(asked).await else {
            driving.abort();
            return number;
        };
        until("it is in hand, or the connection is gone", || {
            host.calls() > before + number || driving.is_finished()
        })
        .await;
        stream.send_reset(h2::Reason::CANCEL);
    }
    driving.abort();
    most
}

#[tokio::test]
async fn requests_that_are_given_up_one_by_one_end_the_connection_too() {
    let host = Host::start("a", 1, hangs_when_told());
    let sent = resets(host.http, &host, 2000).await;
    assert!(sent < 500, "{sent}");
    assert!(host.calls() <= 250, "{}", host.calls());
    until("nothing is in hand", || {
        let stats = host.gateway.stats();
        stats.in_flight == 0 && stats.connections_open == 0
    })
    .await;
    // Over a hop it is the client's connection that ends, not the one between the two hosts.
    let front = Host::start("b", 0, says(""));
    front.sees(&[("a", host.peer)]);
    let between = host.gateway.stats().connections;
    for _ in 0..3 {
        assert!(resets(front.http, &host, 2000).await < 500);
        assert_eq!(get(front.http).await, (200, "hello".to_owned()));
    }
    assert!(host.gateway.stats().connections <= between + 2);
    front.stop().await;
    host.stop().await;
}

#[tokio::test]
async fn a_client_that_gives_up_now_and_then_keeps_its_connection() {
    let host = Host::start("a", 1, hangs_when_told());
    let mut client = H2::connect(host.http).await;
    let request = |path: &str| {
        let request = Request::get(format!("http://shop.example.com/{path}"));
        request.body(empty()).unwrap()
    };
    for number in 1..=60 {
        let mut impatient = client.clone();
        let given_up = tokio::spawn(async move { impatient.send(request("hang")).await });
        until("it is in hand", || host.calls() == 2 * number - 1).await;
        given_up.abort();
        assert_eq!(client.send(request("")).await.unwrap().status(), 200);
    }
    assert_eq!(host.gateway.stats().connections, 1);
    drop(client);
    host.stop().await;
}

/// Answers `/endless` with a body that does not end.
fn endless() -> Handle {
    handler(|request| async move {
        if request.uri().path() != "/endless" {
            return Ok(http::Response::new(full("hello")));
        }
        let chunk = bytes::Bytes::from(vec![b'x'; 16 << 10]);
        let frames =
            futures::stream::repeat_with(move || Ok(http_body::Frame::data(chunk.clone())));
        Ok(http::Response::new(StreamBody::new(frames).boxed_unsync()))
    })
}

/// A gateway with one connection to another host that is kept; 128 clients that read nothing fill it.
fn narrow(stall_timeout: Duration) -> (Host, Host) {
    let back = Host::start("b", 1, endless());
    let front = Host::start_with("a", 0, says("never"), |config| {
        config.limits.peer_connections = 1;
        config.limits.stall_timeout = stall_timeout;
    });
    front.sees(&[("b", back.peer)]);
    (front, back)
}

const NON_READERS: u32 = 140;

#[tokio::test]
async fn clients_that_read_nothing_are_ended_and_others_are_answered() {
    let (front, back) = narrow(Duration::from_millis(1500));
    let mut held = Vec::new();
    for _ in 0..NON_READERS {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(front.http).await.unwrap();
        let request = b"GET /endless HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
        stream.write_all(request).await.unwrap();
        held.push(stream);
    }
    until("all are in hand", || back.calls() == NON_READERS).await;
    assert_eq!(get(front.http).await, (200, "hello".to_owned()));
    until("they are gone", || {
        let (front, back) = (front.gateway.stats(), back.gateway.stats());
        front.connections_open == 0 && front.in_flight + back.in_flight == 0
    })
    .await;
    drop(held);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn streams_whose_window_stays_closed_are_ended_and_their_connection_is_not() {
    let (front, back) = narrow(Duration::from_millis(1500));
    let client = H2::connect(front.http).await;
    let asked = (0..NON_READERS).map(|_| {
        let mut client = client.clone();
        async move {
            let request = Request::get("http://shop.example.com/endless");
            client.send(request.body(empty()).unwrap()).await.unwrap()
        }
    });
    let held = futures::future::join_all(asked).await;
    assert_eq!(get(front.http).await, (200, "hello".to_owned()));
    until("nothing is in hand", || {
        front.gateway.stats().in_flight + back.gateway.stats().in_flight == 0
    })
    .await;
    let request = Request::get("http://shop.example.com/");
    let again = client.clone().send(request.body(empty()).unwrap()).await;
    assert_eq!(again.unwrap().status(), StatusCode::OK);
    assert_eq!(front.gateway.stats().connections, 2);
    drop((held, client));
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_guest_that_reads_nothing_is_ended_and_stops_nobody() {
    let (front, back) = narrow(Duration::from_millis(1500));
    let asked = (0..NON_READERS).map(|_| {
        let gateway = front.gateway.clone();
        async move {
            let request = Request::get("/endless").body(empty()).unwrap();
            within(gateway.dispatch(&web(), request)).await
        }
    });
    let mut held = futures::future::join_all(asked).await;
    assert_eq!(get(front.http).await, (200, "hello".to_owned()));
    until("nothing is in hand there", || {
        back.gateway.stats().in_flight == 0
    })
    .await;
    let rest = within(held.pop().unwrap().into_body().collect()).await;
    let why = rest.map(drop).unwrap_err().to_string();
    assert!(why.contains("not read for too long"), "{why}");
    drop(held);
    front.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn beyond_what_connections_carry_a_request_goes_elsewhere_or_is_refused_at_once() {
    let front = Host::start_with("a", 0, says(""), |config| {
        config.limits.peer_connections = 1;
        config.limits.peer_connections_max = 2;
        config.limits.peer_streams_max = 2;
    });
    let (back, other) = (
        Host::start("b", 1, hangs_when_told()),
        Host::start("c", 1, says("other")),
    );
    front.sees(&[("b", back.peer)]);
    let mut hanging = Vec::new();
    for number in 1..=4 {
        let gateway = front.gateway.clone();
        let request = Request::get("/hang").body(empty()).unwrap();
        let asked = async move { gateway.dispatch(&web(), request).await.status() };
        hanging.push(tokio::spawn(asked));
        until("it is in hand", || back.calls() == number).await;
    }
    // The second connection came once the first was full.
    assert_eq!(back.gateway.stats().connections, 2);
    let answer = ask(front.http, "POST /", &["host: shop.example.com"]).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("wasmorch-error: overloaded\r\n") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    front.sees(&[("b", back.peer), ("c", other.peer)]);
    for _ in 0..20 {
        let answer = ask(front.http, "POST /", &["host: shop.example.com"]).await;
        assert_eq!((status(&answer), body(&answer).as_str()), (200, "other"));
    }
    assert_eq!((back.calls(), other.calls()), (4, 20));
    // What ends makes room.
    front.sees(&[("b", back.peer)]);
    let one = hanging.pop().unwrap();
    one.abort();
    assert!(one.await.is_err());
    assert_eq!(get(front.http).await, (200, "hello".to_owned()));
    for one in hanging {
        one.abort();
    }
    for host in [front, back, other] {
        host.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_it() {
    let (front, back) = narrow(Duration::from_millis(300));
    let mut stream = TcpStream::connect(front.http).await.unwrap();
    let request = b"GET /endless HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let began = std::time::Instant::now();
    let mut chunk = vec![0; 512 << 10];
    // A pause that is shorter than the time-out, many times as long in all.
    while began.elapsed() < Duration::from_millis(1500) {
        within(stream.read_exact(&mut chunk)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(stream);
    front.stop().await;
    back.stop().await;
}
