//! A command of `wasi:cli` 0.3: async, with stdin and stdout as streams of the component model.
//!
//! `files ACT PATH [BYTES | OTHER]` does something to a file or a name below the first directory that it was given: `stream`,
//! `append`, `resize`, `make`, `directory`, `symlink`, `link`, `rename`, `remove`; it says `done`, or the error.
//! `cat` copies stdin to stdout, `fail` ends with exit code 1; `tcp PORT`, `udp PORT` and `bind PORT` say whether that
//! port of 127.0.0.1 may be reached or had; anything else prints the arguments and the environment variable GREETING.

mod files;

use wasip3::cli::{environment, stdin, stdout};
use wasip3::sockets::types::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket, UdpSocket,
};
use wasip3::wit_bindgen::StreamReader;
use wasip3::wit_stream;

struct Command;

wasip3::cli::command::export!(Command);

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let args: Vec<String> = environment::get_arguments().into_iter().skip(1).collect();
        match args.first().map(String::as_str) {
            Some("cat") => {
                let (input, end) = stdin::read_via_stream();
                print(input).await?;
                end.await.map_err(drop)
            }
            Some("fail") => {
                say("failing, as asked\n".to_owned()).await?;
                Err(())
            }
            Some(act @ ("tcp" | "udp" | "bind")) => {
                let port = args.get(1).and_then(|port| port.parse().ok()).ok_or(())?;
                let done = reach(act, port).await;
                say(done.map_or_else(|error| format!("{error:?}\n"), |()| "done\n".into())).await
            }
            Some("files") => {
                let words: Vec<&str> = args[1..].iter().map(String::as_str).collect();
                let done = files::act(&words).await;
                say(done.map_or_else(|error| format!("{error:?}\n"), |()| "done\n".into())).await
            }
            _ => say(report(&args)).await,
        }
    }
}

async fn reach(act: &str, port: u16) -> Result<(), ErrorCode> {
    let local = IpSocketAddress::Ipv4(Ipv4SocketAddress {
        port,
        address: (127, 0, 0, 1),
    });
    match act {
        "tcp" => {
            TcpSocket::create(IpAddressFamily::Ipv4)?
                .connect(local)
                .await
        }
        "udp" => {
            let socket = UdpSocket::create(IpAddressFamily::Ipv4)?;
            socket.send(b"ping".to_vec(), Some(local)).await
        }
        _ => TcpSocket::create(IpAddressFamily::Ipv4)?.bind(local),
    }
}

fn report(args: &[String]) -> String {
    let greeting = environment::get_environment()
        .into_iter()
        .find(|(name, _)| name == "GREETING");
    let greeting = greeting.map_or_else(|| "not set".to_owned(), |(_, value)| value);
    format!("args: {}\nGREETING: {greeting}\n", args.join(" "))
}

/// Gives a stream to stdout: the host moves the bytes, as they arrive.
async fn print(contents: StreamReader<u8>) -> Result<(), ()> {
    stdout::write_via_stream(contents).await.map_err(drop)
}

async fn say(text: String) -> Result<(), ()> {
    let (mut writer, contents) = wit_stream::new();
    let printed = stdout::write_via_stream(contents);
    let unwritten = writer.write_all(text.into_bytes()).await;
    drop(writer); // the end of the stream
    printed.await.map_err(drop)?;
    if unwritten.is_empty() {
        Ok(())
    } else {
        Err(())
    }
}
