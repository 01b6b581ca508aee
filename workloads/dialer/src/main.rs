//! TCP and UDP by `wasi:sockets` 0.2: what `--grant sockets=connect:HOST:PORT` and `sockets=listen:PORT` grant.
//!
//! `tcp HOST:PORT` and `udp HOST:PORT` send `ping` and print what comes back; `listen PORT` and `receive PORT` answer
//! the first who does so with `pong`. Whatever is refused is printed, and ends it with exit code 1.

use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["tcp", target] => tcp(target),
        ["udp", target] => udp(target),
        ["listen", port] => listen(port),
        ["receive", port] => receive(port),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            "tcp|udp HOST:PORT, listen|receive PORT",
        )),
    };
    match done {
        Ok(text) => println!("{text}"),
        Err(error) => {
            println!("refused: {error}");
            std::process::exit(1);
        }
    }
}

fn tcp(target: &str) -> Result<String> {
    let mut stream = TcpStream::connect(target)?;
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn udp(target: &str) -> Result<String> {
    let target = target.to_socket_addrs()?.next();
    let target = target.ok_or(ErrorKind::NotFound)?;
    let socket = UdpSocket::bind(match target {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    })?;
    socket.send_to(b"ping", target)?;
    let mut answer = [0; 16];
    let (length, _) = socket.recv_from(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn listen(port: &str) -> Result<String> {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    let (mut stream, _) = listener.accept()?;
    let mut question = [0; 4];
    stream.read_exact(&mut question)?;
    stream.write_all(b"pong")?;
    Ok(String::from_utf8_lossy(&question).into_owned())
}

fn receive(port: &str) -> Result<String> {
    let socket = UdpSocket::bind(format!("127.0.0.1:{port}"))?;
    let mut question = [0; 16];
    let (length, from) = socket.recv_from(&mut question)?;
    socket.send_to(b"pong", from)?;
    Ok(String::from_utf8_lossy(&question[..length]).into_owned())
}
