//! Files of a volume (`--grant volume=data:/data`), by `wasi:filesystem` itself: every way to write.
//!
//! | path | what it does |
//! | --- | --- |
//! | `/read?PATH`, `/size?PATH` | reads |
//! | `/write?PATH=BYTES`, `/stream?PATH=BYTES`, `/append?PATH=BYTES` | writes `x` from the start, or at the end |
//! | `/resize?PATH=BYTES`, `/make?PATH`, `/directory?PATH` | makes files longer, and new |
//! | `/link?OLD=PATH`, `/symlink?TARGET=PATH`, `/rename?OLD=PATH`, `/remove?PATH` | names |
//!
//! PATH begins with that of the volume. A failure is answered with 507 and the error's name.

use answer::{answer, respond, target};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::io::streams::{OutputStream, StreamError};

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: usize = 4096;

struct Files;

wasip2::http::proxy::export!(Files);

impl wasip2::exports::http::incoming_handler::Guest for Files {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = target(&request);
        if path == "/" {
            return answer(out, 200, "try /write?/data/file=100\n");
        }
        let (first, second) = query.split_once('=').unwrap_or((&query, ""));
        match act(&path, first, second) {
            Ok(body) => respond(out, 200, |stream| {
                let mut parts = body.chunks(WRITE_BYTES_MAX);
                parts.try_for_each(|part| stream.blocking_write_and_flush(part))
            }),
            Err(error) => answer(out, 507, error.name()),
        }
    }
}

fn act(path: &str, first: &str, second: &str) -> Result<Vec<u8>, ErrorCode> {
    let bytes = || second.parse::<u64>().map_err(|_| ErrorCode::Invalid);
    match path {
        "/read" => read(first),
        "/size" => {
            let (directory, name) = find(first)?;
            let stat = directory.stat_at(PathFlags::empty(), &name)?;
            Ok(stat.size.to_string().into_bytes())
        }
        "/write" => {
            let file = open(first, OpenFlags::CREATE)?;
            let data = vec![b'x'; usize::try_from(bytes()?).map_err(|_| ErrorCode::Invalid)?];
            let mut at = 0;
            while at < data.len() {
                at += usize::try_from(file.write(&data[at..], at as u64)?)
                    .map_err(|_| ErrorCode::Io)?;
            }
            done(Ok(()))
        }
        "/stream" => {
            let file = open(first, OpenFlags::CREATE)?;
            pour(&file.write_via_stream(0)?, bytes()?)
        }
        "/append" => {
            let file = open(first, OpenFlags::CREATE)?;
            pour(&file.append_via_stream()?, bytes()?)
        }
        "/resize" => done(open(first, OpenFlags::CREATE)?.set_size(bytes()?)),
        "/make" => done(open(first, OpenFlags::CREATE | OpenFlags::EXCLUSIVE).map(drop)),
        "/directory" => {
            let (directory, name) = find(first)?;
            done(directory.create_directory_at(&name))
        }
        "/symlink" => {
            let (directory, name) = find(second)?;
            done(directory.symlink_at(first, &name))
        }
        "/link" => {
            let ((from, old), (to, new)) = (find(first)?, find(second)?);
            done(from.link_at(PathFlags::empty(), &old, &to, &new))
        }
        "/rename" => {
            let ((from, old), (to, new)) = (find(first)?, find(second)?);
            done(from.rename_at(&old, &to, &new))
        }
        "/remove" => {
            let (directory, name) = find(first)?;
            done(directory.unlink_file_at(&name))
        }
        _ => Err(ErrorCode::Unsupported),
    }
}

fn done(result: Result<(), ErrorCode>) -> Result<Vec<u8>, ErrorCode> {
    result.map(|()| b"done".to_vec())
}

/// The volume that a path is in, and the rest of the path.
fn find(path: &str) -> Result<(Descriptor, String), ErrorCode> {
    let mut found: Option<(Descriptor, String, usize)> = None;
    for (directory, at) in get_directories() {
        let rest = path.strip_prefix(at.trim_end_matches('/'));
        let rest = rest.and_then(|rest| rest.strip_prefix('/'));
        if let Some(rest) = rest
            && found.as_ref().is_none_or(|known| known.2 < at.len())
        {
            found = Some((directory, rest.to_owned(), at.len()));
        }
    }
    let (directory, rest, _) = found.ok_or(ErrorCode::NoEntry)?;
    Ok((directory, rest))
}

fn open(path: &str, flags: OpenFlags) -> Result<Descriptor, ErrorCode> {
    let (directory, name) = find(path)?;
    let both = DescriptorFlags::READ | DescriptorFlags::WRITE;
    directory.open_at(PathFlags::SYMLINK_FOLLOW, &name, flags, both)
}

fn read(path: &str) -> Result<Vec<u8>, ErrorCode> {
    let (directory, name) = find(path)?;
    let (follow, flags) = (PathFlags::SYMLINK_FOLLOW, OpenFlags::empty());
    let file = directory.open_at(follow, &name, flags, DescriptorFlags::READ)?;
    let (bytes, _) = file.read(1 << 20, 0)?;
    Ok(bytes)
}

fn pour(stream: &OutputStream, bytes: u64) -> Result<Vec<u8>, ErrorCode> {
    let part = [b'x'; WRITE_BYTES_MAX];
    let mut left = bytes;
    while left > 0 {
        let length =
            usize::try_from(left).map_or(WRITE_BYTES_MAX, |left| left.min(WRITE_BYTES_MAX));
        if let Err(error) = stream.blocking_write_and_flush(&part[..length]) {
            return Err(match error {
                StreamError::LastOperationFailed(error) => {
                    wasip2::filesystem::types::filesystem_error_code(&error)
                        .unwrap_or(ErrorCode::Io)
                }
                StreamError::Closed => ErrorCode::Io,
            });
        }
        left -= length as u64;
    }
    done(Ok(()))
}
