//! Takes what the host keeps for its guests: resources and what hangs on them, files, sockets, values.

use std::hint::black_box;
use std::mem::forget;

use wasip2::clocks::monotonic_clock;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, Method, OutgoingRequest};
use wasip2::io::poll::poll;
use wasip2::sockets::network::IpAddressFamily;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

use crate::reach::request;
use crate::wasi::blobstore::blobstore::get_container;

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

/// Methods of 64 KiB, again and again.
pub(crate) fn long_method() -> ! {
    let method = Method::Other("X".repeat(64 << 10));
    loop {
        let request = OutgoingRequest::new(Fields::new());
        let _full = request.set_method(&method);
        forget(request);
    }
}

/// Asks a server again and again, and keeps the heads of its answers.
pub(crate) fn kept_answers(authority: &str) -> ! {
    loop {
        let Ok(answer) = outgoing_handler::handle(request(authority), None) else {
            continue;
        };
        answer.subscribe().block();
        if let Some(Ok(Ok(response))) = answer.get() {
            drop(response.consume());
            forget(response);
        }
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

/// Reads the beginning of its folders again and again, and keeps the rest for later.
pub(crate) fn listings() -> ! {
    let directories = get_directories();
    loop {
        for (directory, _) in &directories {
            if let Ok(entries) = directory.read_directory() {
                let _first = entries.read_directory_entry();
                forget(entries);
            }
        }
    }
}

/// How many entries its folders have.
pub(crate) fn list() -> String {
    let mut found = 0;
    for (directory, _) in get_directories() {
        if let Ok(entries) = directory.read_directory() {
            while let Ok(Some(_)) = entries.read_directory_entry() {
                found += 1;
            }
        }
    }
    found.to_string()
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

/// Begins to read an object, and to list all, again and again.
pub(crate) fn values(name: &str) -> ! {
    let Ok(container) = get_container("default") else {
        panic!("no container is granted");
    };
    loop {
        forget(container.get_data(name, 0, u64::MAX));
        forget(container.list_objects());
    }
}
