//! Dials a host, and asks who is there.
//!
//! Invariant: a connection counts only once the host that is meant has answered on it. An address of
//! a private network means another machine in another one, and a host behind NAT tells its own: a
//! request must go neither to a host that it is not meant for, nor to whatever else listens there.

use std::pin::Pin;

use http::header::HeaderValue;
use http::{Request, Response, StatusCode, Version};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wasmorch_api::HostId;
use wasmorch_api::error::chain;

use super::Tasks;
use crate::headers;
use crate::replay::Attempt;
use crate::socket;
use crate::tunnel::Pipe;

/// A connection: what requests are given to, and what is to be driven.
pub(super) type Joined = (
    http2::SendRequest<Attempt>,
    Pin<Box<http2::Connection<TokioIo<Pipe>, Attempt, Tasks>>>,
);

/// Over a stream that leads to the host.
pub(super) async fn join(builder: &http2::Builder<Tasks>, stream: Pipe) -> Result<Joined, String> {
    let joined = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = joined.map_err(|error| chain(&error))?;
    Ok((sender, Box::pin(connection)))
}

/// To the host at an address, if it is there.
pub(super) async fn direct(
    builder: &http2::Builder<Tasks>,
    address: &str,
    host: &HostId,
) -> Result<Joined, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| e.to_string())?;
    socket::prepare(&stream).map_err(|e| e.to_string())?;
    let (mut sender, mut connection) = join(builder, Pipe::new(stream)).await?;
    let answer = tokio::select! {
        answer = sender.send_request(who_is_there(host)) => answer,
        ended = &mut connection => match ended {
            Ok(()) => return Err("it closed the connection".into()),
            Err(error) => Err(error),
        },
    };
    let answer = answer.map_err(|error| chain(&error))?;
    if !is_said(&answer, host) {
        return Err(format!("who answers there is not {host}"));
    }
    Ok((sender, connection))
}

fn who_is_there(host: &HostId) -> Request<Attempt> {
    let mut request = Request::new(Attempt::empty());
    *request.version_mut() = Version::HTTP_11;
    let host = HeaderValue::try_from(host.as_str()).expect("an id is plain text");
    request.headers_mut().insert(headers::HOST, host);
    request
}

fn is_said<B>(answer: &Response<B>, host: &HostId) -> bool {
    let said = answer.headers().get(headers::HOST);
    answer.status() == StatusCode::NO_CONTENT && said.is_some_and(|said| said == host.as_str())
}
