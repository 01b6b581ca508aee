//! Takes what the host keeps for its guests: resources and what hangs on them, files, sockets.

use std::hint::black_box;
use std::mem::forget;

use wasip2::clocks::monotonic_clock;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip2::http::types::{Fields, OutgoingRequest};
use wasip2::io::poll::poll;
use wasip2::sockets::network::IpAddressFamily;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

pub(crate) fn fields() -> ! {
    loop {
        forget(Fields::new());
    }
}

/// Headers of 100 KiB, again and again: few handles, much memory.
pub(crate) fn headers() -> ! {
    let value = vec![b'x'; 1000];
    loop {
        let fields = Fields::new();
        for number in 0..100 {
            let _full = fields.append(&format!("x-{number}"), &value);
        }
        forget(fields);
    }
}

pub(crate) fn pollables() -> ! {
    loop {
        forget(monotonic_clock::subscribe_duration(u64::MAX));
    }
}

/// A list that names one resource a million times.
pub(crate) fn poll_one_often() -> ! {
    let ready = monotonic_clock::subscribe_duration(0);
    let list = vec![&ready; 1 << 20];
    loop {
        black_box(poll(&list));
    }
}

/// Bodies that are written to and never sent: what is written waits in the host.
pub(crate) fn bodies() -> ! {
    let block = vec![1u8; 1 << 20];
    loop {
        let request = OutgoingRequest::new(Fields::new());
        if let Ok(body) = request.body() {
            if let Ok(stream) = body.write() {
                let room = stream.check_write().unwrap_or_default() as usize;
                let _full = stream.write(&block[..room.min(block.len())]);
                forget(stream);
            }
            forget(body);
        }
        forget(request);
    }
}

fn open(directory: &Descriptor, name: &str) -> Option<Descriptor> {
    let both = DescriptorFlags::READ | DescriptorFlags::WRITE;
    directory
        .open_at(PathFlags::empty(), name, OpenFlags::CREATE, both)
        .ok()
}

/// Opens a file again and again; goes on when that is refused.
pub(crate) fn files(name: &str) -> ! {
    let directories = get_directories();
    loop {
        for (directory, _) in &directories {
            forget(open(directory, name));
        }
    }
}

/// The same, but keeps only streams of what was opened.
pub(crate) fn file_streams(name: &str) -> ! {
    let directories = get_directories();
    loop {
        for (directory, _) in &directories {
            if let Some(file) = open(directory, name) {
                forget(file.read_via_stream(0));
            }
        }
    }
}

pub(crate) fn sockets() -> ! {
    loop {
        forget(create_tcp_socket(IpAddressFamily::Ipv4));
    }
}
