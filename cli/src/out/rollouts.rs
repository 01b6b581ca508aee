//! Rollouts and the revisions that they led to, as people read them. Pure: data in, text out.

use wasmorch_api::messages::{HistoryItem, RolloutView};
use wasmorch_api::{Name, RolloutState, Timestamp};

use super::human::{age, harmless, span};
use super::table::{Cell, Table, Tone};
use super::views::one_line;

fn rollout_tone(state: RolloutState) -> Tone {
    match state {
        RolloutState::Completed => Tone::Good,
        RolloutState::Failed | RolloutState::Reverted | RolloutState::Reverting => Tone::Bad,
        _ => Tone::Warn,
    }
}

/// A rollout in a few words, or that there is none.
pub(crate) fn rollout_or_none(view: Option<&RolloutView>, now: Timestamp) -> String {
    view.map_or_else(|| "no rollout".to_owned(), |view| rollout(view, now))
}

/// What a deploy ends with that a person has to go on with.
pub(crate) fn canary_waits(workload: &Name, rollout: &RolloutView) -> String {
    let (ready, desired) = (rollout.ready, rollout.desired);
    let mut text = format!(
        "canary ready: {ready} of {desired}; `wasmorch rollout promote {workload}` goes on"
    );
    if let Some(waits) = waits(rollout) {
        text.push_str(&format!(" ({waits})"));
    }
    text
}

/// A rollout in a few words.
pub(crate) fn rollout(rollout: &RolloutView, now: Timestamp) -> String {
    let from = rollout
        .from
        .map(|from| format!("{from} to "))
        .unwrap_or_default();
    let mut text = format!(
        "{} {from}{}",
        rollout_tone(rollout.state).paint(rollout.state.as_str()),
        rollout.revision
    );
    let waits = waits(rollout);
    if !rollout.state.ended() && waits.is_some() {
        text.push_str(&format!(": {}/{} ready", rollout.ready, rollout.desired));
    } else if !rollout.state.ended() {
        let left = rollout.deadline.since(now);
        text.push_str(&format!(
            ": {}/{} ready, {} left for progress",
            rollout.ready,
            rollout.desired,
            span(left)
        ));
    }
    if let Some(waits) = waits {
        text.push_str(&format!(", {waits}"));
    }
    if let Some(reason) = &rollout.reason {
        text.push_str(": ");
        text.push_str(&one_line(reason));
    }
    text
}

/// What a rollout waits for: `waits for orders (1 of 2 ready)`.
pub(crate) fn waits(rollout: &RolloutView) -> Option<String> {
    let each = rollout.waits_for.iter();
    let each: Vec<String> = each
        .map(|one| format!("{} ({})", one.workload, one_line(&one.why)))
        .collect();
    (!each.is_empty()).then(|| format!("waits for {}", each.join(", ")))
}

/// `history`.
pub(crate) fn history(
    items: &[HistoryItem],
    current: Option<u64>,
    now: Timestamp,
    width: Option<usize>,
) -> String {
    let mut table = Table::new(&[">REVISION", ">AGE", "BY", "ARTIFACT", "CHANGES"]);
    for item in items {
        let wanted = current == Some(item.revision.0);
        let number = if wanted {
            format!("*{}", item.revision)
        } else {
            item.revision.to_string()
        };
        table.row(vec![
            Cell::toned(number, if wanted { Tone::Name } else { Tone::Plain }),
            age(item.at, now).into(),
            item.by.clone().into(),
            item.artifact.short().into(),
            harmless(&item.changes.join(", ")).into(),
        ]);
    }
    table.render(width)
}
