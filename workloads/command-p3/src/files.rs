//! Files by `wasi:filesystem` 0.3 itself: every way to write.

use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip3::wit_stream;

/// Does what the words say, below the first directory; the second one is where `link` and `rename` lead
/// when the other name begins with `..`.
pub(crate) async fn act(words: &[&str]) -> Result<(), ErrorCode> {
    let [act, path, rest @ ..] = words else {
        return Err(ErrorCode::Invalid);
    };
    let mut directories = get_directories()
        .into_iter()
        .map(|(directory, _)| directory);
    let root = directories.next().ok_or(ErrorCode::NoEntry)?;
    let other = rest.first().copied().unwrap_or_default();
    let bytes = || other.parse::<u64>().map_err(|_| ErrorCode::Invalid);
    let (to, name) = match other.strip_prefix("../") {
        Some(name) => (directories.next(), name),
        None => (None, other),
    };
    let to = to.as_ref().unwrap_or(&root);
    match *act {
        "stream" => pour(&open(&root, path).await?, Some(0), bytes()?).await,
        "append" => pour(&open(&root, path).await?, None, bytes()?).await,
        "resize" => open(&root, path).await?.set_size(bytes()?).await,
        "make" => open(&root, path).await.map(drop),
        "directory" => root.create_directory_at((*path).to_owned()).await,
        "symlink" => root.symlink_at(name.to_owned(), (*path).to_owned()).await,
        "link" => {
            let (old, new) = ((*path).to_owned(), name.to_owned());
            root.link_at(PathFlags::empty(), old, to, new).await
        }
        "rename" => {
            root.rename_at((*path).to_owned(), to, name.to_owned())
                .await
        }
        "remove" => root.unlink_file_at((*path).to_owned()).await,
        _ => Err(ErrorCode::Unsupported),
    }
}

async fn open(root: &Descriptor, path: &str) -> Result<Descriptor, ErrorCode> {
    let both = DescriptorFlags::READ | DescriptorFlags::WRITE;
    root.open_at(PathFlags::empty(), path.to_owned(), OpenFlags::CREATE, both)
        .await
}

/// Streams so many bytes, from a position or at the end.
async fn pour(file: &Descriptor, position: Option<u64>, bytes: u64) -> Result<(), ErrorCode> {
    let (mut writer, contents) = wit_stream::new();
    let written = match position {
        Some(position) => file.write_via_stream(contents, position),
        None => file.append_via_stream(contents),
    };
    let bytes = usize::try_from(bytes).map_err(|_| ErrorCode::Invalid)?;
    let _unwritten = writer.write_all(vec![b'x'; bytes]).await;
    drop(writer); // the end of the stream
    written.await
}
