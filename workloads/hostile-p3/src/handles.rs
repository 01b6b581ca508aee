//! Takes what the host keeps for its guests, and keeps of it what is in no table.

use std::mem::forget;
use std::net::SocketAddrV4;

use wasip3::clocks::monotonic_clock;
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
use wasip3::http::types::{Fields, Method, Request};
use wasip3::sockets::types::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket,
};
use wasip3::wit_future;

/// Methods of 64 KiB, again and again.
pub(crate) fn long_method() -> ! {
    let method = Method::Other("X".repeat(64 << 10));
    loop {
        let (_, no_trailers) = wit_future::new(|| Ok(None));
        let (request, sent) = Request::new(Fields::new(), None, no_trailers, None);
        let _full = request.set_method(&method);
        forget((request, sent));
    }
}

async fn wait() -> ! {
    loop {
        monotonic_clock::wait_for(u64::MAX).await;
    }
}

/// Opens a file so often, keeps only streams of it, and waits with them.
pub(crate) async fn file_streams(count: &str) -> ! {
    let directories = get_directories();
    for _ in 0..count.parse().unwrap_or(u64::MAX) {
        for (directory, _) in &directories {
            let (flags, read) = (OpenFlags::CREATE, DescriptorFlags::READ);
            let name = "file".to_owned();
            let opened = directory.open_at(PathFlags::empty(), name, flags, read);
            if let Ok(file) = opened.await {
                forget(file.read_via_stream(0));
            }
        }
    }
    wait().await
}

/// Begins to read its folders so often, takes nothing, and waits.
pub(crate) async fn listings(count: &str) -> ! {
    let directories = get_directories();
    for _ in 0..count.parse().unwrap_or(u64::MAX) {
        for (directory, _) in &directories {
            forget(directory.read_directory());
        }
    }
    // What a guest holds is counted when it runs.
    loop {
        monotonic_clock::wait_for(10_000_000).await;
    }
}

/// How many entries its folders have, and what it was told at the end of each.
pub(crate) async fn list() -> String {
    let mut report = String::new();
    for (directory, _) in get_directories() {
        let (entries, told) = directory.read_directory();
        let entries = entries.collect().await;
        report += &format!("{} {:?}", entries.len(), told.await);
    }
    report
}

async fn connect(address: &str) -> Result<TcpSocket, ErrorCode> {
    let address: SocketAddrV4 = address.parse().map_err(|_| ErrorCode::InvalidArgument)?;
    let [a, b, c, d] = address.ip().octets();
    let socket = TcpSocket::create(IpAddressFamily::Ipv4)?;
    let remote = IpSocketAddress::Ipv4(Ipv4SocketAddress {
        port: address.port(),
        address: (a, b, c, d),
    });
    socket.connect(remote).await?;
    Ok(socket)
}

/// Connects so often, keeps only streams of what comes, and waits with them.
pub(crate) async fn connections(query: &str) -> ! {
    let (address, count) = query.split_once('=').unwrap_or((query, ""));
    for _ in 0..count.parse().unwrap_or(u64::MAX) {
        if let Ok(socket) = connect(address).await {
            forget(socket.receive());
        }
    }
    wait().await
}

/// What a server sends, and how that ended.
pub(crate) async fn receive(address: &str) -> String {
    let (bytes, told) = match connect(address).await {
        Ok(socket) => socket.receive(),
        Err(error) => return format!("{error:?}"),
    };
    let bytes = bytes.collect().await;
    format!("{} {:?}", String::from_utf8_lossy(&bytes), told.await)
}
