//! A plain HTTP/1.1 client over one socket: tests must see bytes as they come, with any Host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: String,
}

impl Answer {
    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A connection, and the request on it: one whose body can be sent in pieces, or whole ones in turn.
pub struct Exchange {
    stream: BufReader<TcpStream>,
    chunked: bool,
    left: Option<usize>,
}

impl Exchange {
    /// Sends the head of a request with a chunked body.
    pub fn begin(addr: &str, method: &str, host: &str, path: &str) -> std::io::Result<Self> {
        let mut stream = connect(addr)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        )?;
        Ok(Self {
            stream: BufReader::new(stream),
            chunked: false,
            left: None,
        })
    }

    /// A connection on which nothing has been asked yet.
    pub fn open(addr: &str) -> std::io::Result<Self> {
        Ok(Self {
            stream: BufReader::new(connect(addr)?),
            chunked: false,
            left: None,
        })
    }

    /// Sends a whole request; the connection is kept unless it is the `last`.
    pub fn ask(
        &mut self,
        (method, host, path): (&str, &str, &str),
        body: &[u8],
        last: bool,
    ) -> std::io::Result<()> {
        let connection = if last { "close" } else { "keep-alive" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
            body.len()
        );
        // One write, as clients do it: piece by piece an early answer's close would break the rest.
        self.stream
            .get_mut()
            .write_all(&[head.as_bytes(), body].concat())
    }

    /// Sends a piece of the body.
    pub fn send(&mut self, piece: &[u8]) -> std::io::Result<()> {
        let stream = self.stream.get_mut();
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")
    }

    /// Ends the body.
    pub fn end(&mut self) -> std::io::Result<()> {
        self.stream.get_mut().write_all(b"0\r\n\r\n")
    }

    /// Reads the head of the answer.
    pub fn head(&mut self) -> std::io::Result<Answer> {
        let answer = read_head(&mut self.stream)?;
        self.chunked = answer
            .header("transfer-encoding")
            .is_some_and(|value| value == "chunked");
        self.left = answer
            .header("content-length")
            .and_then(|value| value.parse().ok());
        Ok(answer)
    }

    /// Reads the next piece of the answer's body; empty at its end.
    pub fn piece(&mut self) -> std::io::Result<Vec<u8>> {
        if self.left == Some(0) {
            // A read of nothing would wait for the next answer.
            return Ok(Vec::new());
        }
        if !self.chunked {
            let mut buffer = vec![0; self.left.unwrap_or(8192).min(8192)];
            let count = self.stream.read(&mut buffer)?;
            buffer.truncate(count);
            self.left = self.left.map(|left| left - count);
            return Ok(buffer);
        }
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16)
            .map_err(|_| std::io::Error::other(format!("no chunk length: {line:?}")))?;
        let mut piece = vec![0; length];
        self.stream.read_exact(&mut piece)?;
        self.stream.read_line(&mut String::new())?;
        Ok(piece)
    }

    /// Reads the rest of the answer's body.
    pub fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let piece = self.piece()?;
            if piece.is_empty() {
                return Ok(whole);
            }
            whole.extend(piece);
        }
    }
}

fn connect(addr: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn read_head(stream: &mut BufReader<TcpStream>) -> std::io::Result<Answer> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("no status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Answer {
        status,
        headers,
        body: String::new(),
    })
}

/// One whole request.
pub fn request(
    addr: &str,
    method: &str,
    host: &str,
    path: &str,
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut exchange = Exchange::open(addr)?;
    exchange.ask((method, host, path), body, true)?;
    let mut answer = exchange.head()?;
    answer.body = String::from_utf8_lossy(&exchange.rest()?).into_owned();
    Ok(answer)
}

/// A GET.
pub fn get(addr: &str, host: &str, path: &str) -> std::io::Result<Answer> {
    request(addr, "GET", host, path, b"")
}
