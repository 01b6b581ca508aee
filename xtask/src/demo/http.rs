//! The smallest HTTP/1.1 client that the demo needs: one GET, answered whole, on this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longer than any request of the demo takes, its first compile included.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Gets `target` of `http://NAME:PORT` from this machine, whatever NAME is: it travels as the Host header.
pub(super) fn get(url: &str, target: &str) -> Result<String> {
    let authority = url
        .strip_prefix("http://")
        .context("the URL starts with http://")?;
    let port = authority.rsplit_once(':').map_or("80", |(_, port)| port);
    let port: u16 = port.parse().with_context(|| format!("the port of {url}"))?;

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
    stream
        .set_read_timeout(Some(ANSWER_WITHIN))
        .context("setting a time-out")?;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .context("sending the request")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("reading the answer")?;
    body(&answer)
}

/// The body of a successful answer.
fn body(answer: &[u8]) -> Result<String> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer has no end of its head")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let rest = &answer[end + 4..];
    let body = if head.contains("\r\ntransfer-encoding: chunked") {
        unchunk(rest)?
    } else {
        rest.to_vec()
    };
    let body = String::from_utf8_lossy(&body).into_owned();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("answered {status}: {body}");
    }
    Ok(body)
}

/// Undoes the chunked transfer coding: a size in hexadecimal, a line end, the bytes, a line end; the last has size 0.
fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .context("a chunk has no size")?;
        let line = String::from_utf8_lossy(&rest[..line_end]);
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        if size == 0 {
            return Ok(body);
        }
        let start = line_end + 2;
        let chunk = rest
            .get(start..start + size)
            .context("the answer is cut short")?;
        body.extend_from_slice(chunk);
        rest = rest
            .get(start + size + 2..)
            .context("the answer is cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_body_is_what_follows_the_head() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(body(answer).expect("a body"), "abc");
    }

    #[test]
    fn chunks_are_joined() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(body(answer).expect("a body"), "abcde");
    }

    #[test]
    fn a_cut_answer_and_a_refusal_are_errors() {
        let cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc";
        assert!(body(cut).is_err());
        let refused =
            body(b"HTTP/1.1 503 Service Unavailable\r\n\r\nno replica").expect_err("a refusal");
        assert_eq!(refused.to_string(), "answered 503: no replica");
    }
}
