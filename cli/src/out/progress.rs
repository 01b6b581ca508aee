//! What moves while a command works: bars on a terminal, plain lines elsewhere, JSON lines for
//! tools.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::Out;
use crate::error::CliError;

/// Uploads below this are over before a bar is seen.
const BAR_FROM_BYTES: u64 = 4 << 20;

/// The stages of one deploy.
pub(crate) struct Progress {
    out: Out,
    bars: MultiProgress,
}

impl Progress {
    pub(crate) fn new(out: Out) -> Self {
        Self {
            out,
            bars: MultiProgress::new(),
        }
    }

    /// A finished stage: a line that stays, and its object for tools.
    pub(crate) fn stage(&self, text: &str, object: &Value) -> Result<(), CliError> {
        if self.out.is_json() {
            return self.out.json_line(object);
        }
        if self.out.moves() {
            // Above the bars that still move. A terminal that goes away takes nobody along.
            let _ = self.bars.println(text);
        } else {
            self.out.note(text);
        }
        Ok(())
    }

    /// A bar for an upload; hidden when it is small or no one looks.
    pub(crate) fn upload(&self, name: &str, bytes: u64) -> ProgressBar {
        if !self.out.moves() || bytes < BAR_FROM_BYTES {
            return ProgressBar::hidden();
        }
        let style = "{prefix:.bold}  uploading {bar:30} {bytes}/{total_bytes}";
        self.bar(
            ProgressBar::new(bytes)
                .with_style(style_of(style))
                .with_prefix(name.to_owned()),
        )
    }

    /// A bar for what is compiled.
    #[cfg(feature = "compiler")]
    pub(crate) fn compiling(&self, files: u64) -> ProgressBar {
        if !self.out.moves() {
            return ProgressBar::hidden();
        }
        let style = "{spinner} compiling {bar:20} {pos}/{len}  {msg}";
        let bar = self.bar(ProgressBar::new(files).with_style(style_of(style)));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar for a rollout.
    pub(crate) fn rollout(&self, name: &str, desired: u64) -> ProgressBar {
        if !self.out.moves() {
            return ProgressBar::hidden();
        }
        let style = "{spinner} {prefix:.bold}  {bar:20} {pos}/{len} ready  {msg}";
        let bar = ProgressBar::new(desired).with_style(style_of(style));
        let bar = self.bar(bar.with_prefix(name.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn bar(&self, bar: ProgressBar) -> ProgressBar {
        self.bars.add(bar)
    }
}

fn style_of(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates here are legal")
}
