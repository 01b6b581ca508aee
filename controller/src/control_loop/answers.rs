//! Answers to recent writes, so that a repeat gets the first answer and is not done twice.
//!
//! Pure. Two memories make one promise, which holds over a change of leader too: a workload's record
//! keeps the answers to what wrote it (the planner's doing, in the same batch); what leaves no record
//! behind (`rm`) or belongs to the cluster (`cordon`) is kept here, in the key `answers`, again in the
//! batch of what it answers. So a leader that dies after the store has acknowledged and before it has
//! answered leaves both the change and its answer to the next.
//!
//! Bounded: 10 minutes, and so many answers of so many bytes; the oldest go first.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmorch_api::subjects::key;
use wasmorch_api::{Name, RequestId, Timestamp};

use crate::api::{ApiCall, Reply, Verb};
use crate::store::Entry;

/// As long as the contract says, and so many at most: replies are small.
const REMEMBER: Duration = Duration::from_secs(600);
const REMEMBER_MAX: usize = 2_000;
/// So many of them in the store, in one value of at most so many bytes.
const STORED_MAX: usize = 200;
const STORED_BYTES_MAX: usize = 256 * 1024;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Answers(VecDeque<Answer>);

#[derive(Debug, Clone)]
struct Answer {
    id: RequestId,
    verb: Verb,
    namespace: Option<Name>,
    at: Timestamp,
    reply: Reply,
}

/// One answer in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    request_id: RequestId,
    verb: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<Name>,
    at: Timestamp,
    reply: Value,
}

impl Answers {
    /// What earlier leaders left in the key `answers`. What cannot be read is forgotten: it is a
    /// courtesy of ten minutes and no reason to freeze.
    pub(crate) fn restore(value: &[u8]) -> Self {
        let stored: Vec<Stored> = serde_json::from_slice(value).unwrap_or_default();
        let answers = stored.into_iter().filter_map(|one| {
            Some(Answer {
                id: one.request_id,
                verb: Verb::parse(&one.verb)?,
                namespace: one.namespace,
                at: one.at,
                reply: Reply::new(serde_json::to_vec(&one.reply).ok()?),
            })
        });
        Self(answers.collect())
    }

    /// The first answer, when this is a repeat.
    pub(super) fn first(&self, asked: &ApiCall, now: Timestamp) -> Option<Reply> {
        let id = asked.request.caller().0?;
        self.0
            .iter()
            .find(|one| one.id == *id && one.verb == asked.verb && one.namespace == asked.namespace)
            .filter(|one| now.since(one.at) <= REMEMBER)
            .map(|one| one.reply.clone())
    }

    /// What goes into the batch of a write that no record remembers; `None` when one does, or the
    /// caller gave no id.
    pub(super) fn to_store(&self, asked: &ApiCall, now: Timestamp, reply: &Reply) -> Option<Entry> {
        let id = asked.request.caller().0?;
        if !asked.verb.leaves_no_record() {
            return None;
        }
        Some(self.entry(answer(id, asked, now, reply), now))
    }

    fn entry(&self, newest: Answer, now: Timestamp) -> Entry {
        let kept = self.0.iter().filter(|one| {
            one.verb.leaves_no_record() && one.id != newest.id && now.since(one.at) <= REMEMBER
        });
        let mut bytes = 0;
        let mut stored: Vec<Stored> = std::iter::once(&newest)
            .chain(kept.rev())
            .take(STORED_MAX)
            .map(|one| {
                bytes += one.reply.body.len() + 200;
                (bytes, one)
            })
            .take_while(|(bytes, _)| *bytes <= STORED_BYTES_MAX)
            .map(|(_, one)| Stored {
                request_id: one.id.clone(),
                verb: one.verb.as_str().to_owned(),
                namespace: one.namespace.clone(),
                at: one.at,
                reply: serde_json::from_slice(&one.reply.body).unwrap_or_default(),
            })
            .collect();
        stored.reverse();
        let value = serde_json::to_vec(&stored).expect("our own types have string keys");
        Entry {
            key: key::ANSWERS.to_owned(),
            value: Some(Bytes::from(value)),
        }
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, asked: &ApiCall, now: Timestamp, reply: &Reply) {
        let Some(id) = asked.request.caller().0 else {
            return;
        };
        let old = |one: &Answer| now.since(one.at) > REMEMBER;
        while self.0.len() >= REMEMBER_MAX || self.0.front().is_some_and(old) {
            self.0.pop_front();
        }
        self.0.push_back(answer(id, asked, now, reply));
    }
}

fn answer(id: &RequestId, asked: &ApiCall, now: Timestamp, reply: &Reply) -> Answer {
    Answer {
        id: id.clone(),
        verb: asked.verb,
        namespace: asked.namespace.clone(),
        at: now,
        reply: reply.clone(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use wasmorch_api::messages::{ChangeRequest, HostRequest};

    use super::*;
    use crate::api::Request;

    fn call(verb: Verb, id: &str) -> ApiCall {
        let request = if verb == Verb::Cordon {
            Request::Host(HostRequest {
                request_id: Some(id.parse().unwrap()),
                ..HostRequest::default()
            })
        } else {
            Request::Change(ChangeRequest {
                workload: "web".parse().unwrap(),
                desired: None,
                args: None,
                data: false,
                request_id: Some(id.parse().unwrap()),
                by: None,
            })
        };
        ApiCall {
            verb,
            namespace: (verb != Verb::Cordon).then(Name::default),
            request,
            workloads: Vec::new(),
            features: Default::default(),
            answer: oneshot::channel().0,
        }
    }

    fn reply(text: &str) -> Reply {
        Reply::new(serde_json::to_vec(&Value::from(text)).unwrap())
    }

    fn bytes(entry: Entry) -> Bytes {
        assert_eq!(entry.key, "answers");
        entry.value.unwrap()
    }

    #[test]
    fn what_no_record_keeps_outlives_the_term() {
        let mut answers = Answers::default();
        let now = Timestamp(1_000);
        let (rm, cordon) = (call(Verb::Rm, "r1"), call(Verb::Cordon, "r2"));
        assert!(
            answers
                .to_store(&call(Verb::Scale, "r0"), now, &reply("x"))
                .is_none()
        );
        let stored = bytes(answers.to_store(&rm, now, &reply("gone")).unwrap());
        answers.keep(&rm, now, &reply("gone"));
        assert!(Answers::restore(&stored).first(&rm, now).is_some());
        let stored = bytes(answers.to_store(&cordon, now, &reply("shut")).unwrap());

        let next = Answers::restore(&stored);
        assert_eq!(next.first(&rm, now).unwrap().body, reply("gone").body);
        assert_eq!(next.first(&cordon, now).unwrap().body, reply("shut").body);
        assert!(
            next.first(&call(Verb::Rm, "r2"), now).is_none(),
            "another verb's id"
        );
        let late = now.after(REMEMBER + Duration::from_millis(1));
        assert!(
            next.first(&rm, late).is_none(),
            "forgotten after ten minutes"
        );
        assert!(Answers::restore(b"{").0.is_empty());
    }

    #[test]
    fn the_stored_value_is_bounded_and_keeps_the_newest() {
        let mut answers = Answers::default();
        let now = Timestamp(1_000);
        let large = reply(&"x".repeat(10_000));
        let mut last = Bytes::new();
        for n in 0..500 {
            let rm = call(Verb::Rm, &format!("r{n}"));
            let said = if n < 300 { &large } else { &reply("small") };
            last = bytes(answers.to_store(&rm, now, said).unwrap());
            answers.keep(&rm, now, said);
            assert!(last.len() <= STORED_BYTES_MAX);
        }
        let next = Answers::restore(&last);
        assert_eq!(next.0.len(), STORED_MAX);
        assert!(next.first(&call(Verb::Rm, "r499"), now).is_some());
        assert!(next.first(&call(Verb::Rm, "r300"), now).is_some());
        assert!(next.first(&call(Verb::Rm, "r299"), now).is_none());
    }
}
