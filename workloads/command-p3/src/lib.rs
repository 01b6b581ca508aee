//! A command of `wasi:cli` 0.3: async, with stdin and stdout as streams of the component model.
//!
//! `cat` copies stdin to stdout, `fail` ends with exit code 1, anything else prints the arguments and the environment
//! variable GREETING.

use wasip3::cli::{environment, stdin, stdout};
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
            _ => say(report(&args)).await,
        }
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
