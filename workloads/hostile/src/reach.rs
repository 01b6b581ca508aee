//! Reaches for what was not granted: files, addresses, names.

use std::fmt::Write as _;
use std::mem::forget;

use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode as SocketError, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress,
};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

fn read(directory: &Descriptor, path: &str) -> Result<Vec<u8>, ErrorCode> {
    let (follow, flags) = (PathFlags::SYMLINK_FOLLOW, OpenFlags::empty());
    let file = directory.open_at(follow, path, flags, DescriptorFlags::READ)?;
    Ok(file.read(64, 0)?.0)
}

fn volume() -> Option<Descriptor> {
    get_directories().into_iter().next().map(|(found, _)| found)
}

/// Each way out of the volume, and what came of it.
pub(crate) fn escape() -> String {
    let Some(directory) = volume() else {
        return "no volume".into();
    };
    let _ = directory.create_directory_at("in");
    let up = "../".repeat(20);
    let paths = [
        "/etc/hostname".to_owned(),
        "../secret".to_owned(),
        "in/../../secret".to_owned(),
        "in/./..//../secret".to_owned(),
        format!("{up}etc/hostname"),
        format!("in/{up}proc/self/environ"),
    ];
    let mut report = String::new();
    for path in paths {
        let _ = match read(&directory, &path) {
            Ok(_) => write!(report, "read {path} "),
            Err(_) => write!(report, "refused "),
        };
    }
    report
}

/// By a link to a file outside, to a folder outside, and to a link of its own.
pub(crate) fn symlink(outside: &str) -> String {
    let Some(directory) = volume() else {
        return "no volume".into();
    };
    let _ = directory.symlink_at(outside, "absolute");
    let _ = directory.symlink_at("..", "up");
    let _ = directory.symlink_at("up", "twice");
    let mut report = String::new();
    for path in ["absolute", "up/secret", "twice/secret", "planted"] {
        let _ = match read(&directory, path) {
            Ok(_) => write!(report, "read {path} "),
            Err(_) => write!(report, "refused "),
        };
    }
    report
}

/// Fills the volume, by whatever the host has not counted.
pub(crate) fn disk() -> String {
    let Some(directory) = volume() else {
        return "no volume".into();
    };
    let both = DescriptorFlags::READ | DescriptorFlags::WRITE;
    let mut number = 0;
    loop {
        let name = format!("file-{number}");
        number += 1;
        let opened = directory.open_at(PathFlags::empty(), &name, OpenFlags::CREATE, both);
        let filled = opened.and_then(|file| file.write(&[b'x'; 100_000], 1 << 20));
        if let Err(error) = filled {
            return error.name().to_owned();
        }
    }
}

fn address(query: &str) -> Option<IpSocketAddress> {
    let address: std::net::SocketAddrV4 = query.parse().ok()?;
    let [a, b, c, d] = address.ip().octets();
    Some(IpSocketAddress::Ipv4(Ipv4SocketAddress {
        port: address.port(),
        address: (a, b, c, d),
    }))
}

/// Connects to an address, for instance that of the cloud's metadata.
pub(crate) fn connect(query: &str) -> String {
    let Some(address) = address(query) else {
        return "no address".into();
    };
    let connected = || -> Result<(), SocketError> {
        let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
        socket.start_connect(&instance_network(), address)?;
        loop {
            match socket.finish_connect() {
                Err(SocketError::WouldBlock) => socket.subscribe().block(),
                finished => return finished.map(drop),
            }
        }
    };
    match connected() {
        Ok(()) => "connected".into(),
        Err(error) => error.name().to_owned(),
    }
}

/// Asks for the addresses of a name.
pub(crate) fn lookup(name: &str) -> String {
    let looked_up = || -> Result<Option<IpAddress>, SocketError> {
        let stream = resolve_addresses(&instance_network(), name)?;
        loop {
            match stream.resolve_next_address() {
                Err(SocketError::WouldBlock) => stream.subscribe().block(),
                found => return found,
            }
        }
    };
    match looked_up() {
        Ok(found) => format!("{found:?}"),
        Err(error) => error.name().to_owned(),
    }
}

/// What asks for `/`.
pub(crate) fn request(authority: &str) -> OutgoingRequest {
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some(authority));
    let _ = request.set_path_with_query(Some("/"));
    request
}

/// Asks a server that does not answer, until the host lets it ask no more.
pub(crate) fn requests(authority: &str) -> String {
    let mut sent = 0;
    loop {
        let Ok(answer) = outgoing_handler::handle(request(authority), None) else {
            return format!("refused after {sent}");
        };
        sent += 1;
        // What is refused is refused at once, and what is not has no answer.
        if sent > 1000 {
            answer.subscribe().block();
        }
        if let Some(Ok(Err(error))) = answer.get() {
            return format!("{error:?} after {sent}");
        }
        forget(answer);
    }
}
