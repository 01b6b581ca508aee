//! Requests: from a subject and a body to what is asked, every mistake reported.
//!
//! Owns the grammar of the API's requests but for specs, whose grammar is `api`'s.

use serde::de::DeserializeOwned;
use wasmorch_api::messages::{
    ChangeRequest, DeployRequest, Empty, HostRequest, ListRequest, QuotaRequest, RecoverRequest,
    RolloutRequest, WhyRequest, WorkloadRequest,
};
use wasmorch_api::{ApiError, ErrorCode, Name, Problem, RequestId, manifest, subjects};

use super::verb::{Scope, Verb};

/// A request as it was read.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// `deploy`, `plan`.
    Deploy(Box<DeployRequest>),
    /// `list`, `hosts`.
    List(ListRequest),
    /// `status`, `history`.
    Workload(WorkloadRequest),
    /// `scale`, `stop`, `start`, `restart`, `rm`.
    Change(ChangeRequest),
    /// `rollback`, `rollout`.
    Rollout(RolloutRequest),
    /// `why`.
    Why(WhyRequest),
    /// `quota`.
    Quota(QuotaRequest),
    /// Verbs about hosts.
    Host(HostRequest),
    /// `recover`.
    Recover(RecoverRequest),
    /// `version`.
    Nothing,
}

impl Request {
    /// The write's id and who asks.
    pub(crate) fn caller(&self) -> (Option<&RequestId>, Option<&str>) {
        match self {
            Self::Deploy(request) => (request.request_id.as_ref(), request.by.as_deref()),
            Self::Change(request) => (request.request_id.as_ref(), request.by.as_deref()),
            Self::Rollout(request) => (request.request_id.as_ref(), request.by.as_deref()),
            Self::Quota(request) => (request.request_id.as_ref(), request.by.as_deref()),
            Self::Host(request) => (request.request_id.as_ref(), request.by.as_deref()),
            Self::Recover(request) => (request.request_id.as_ref(), request.by.as_deref()),
            Self::List(_) | Self::Workload(_) | Self::Why(_) | Self::Nothing => (None, None),
        }
    }
}

/// What a call's subject says; the verb alone is `Ok` even when the namespace is wrong, so that the
/// refusal is counted where it belongs.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) verb: Option<Verb>,
    pub(super) namespace: Result<Option<Name>, ApiError>,
}

/// Reads `wasmorch.v1.api.<namespace>.<verb>`.
pub(super) fn target(subject: &str) -> Target {
    let word = subject.rsplit_once('.').map_or("", |(_, word)| word);
    let verb = Verb::parse(word);
    let namespace = match (subjects::parse_api(subject), verb) {
        (Some((namespace, _)), Some(verb)) => in_scope(namespace, verb),
        (Some(_), None) => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("the API has no verb {}", shown(word)),
            "",
            "see `nats micro info wasmorch`",
        )),
        (None, _) => Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{} is no subject of the API", shown(subject)),
            "a namespace is a DNS label, or `_` for the whole cluster",
            "ask wasmorch.v1.api.<namespace>.<verb>",
        )),
    };
    Target { verb, namespace }
}

fn in_scope(namespace: Option<Name>, verb: Verb) -> Result<Option<Name>, ApiError> {
    let word = verb.as_str();
    match (verb.scope(), &namespace) {
        (Scope::Namespace, None) => Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{word} is asked in a namespace"),
            "`_` is the whole cluster",
            format!("ask wasmorch.v1.api.default.{word}"),
        )),
        (Scope::Cluster, Some(_)) => Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{word} is asked of the whole cluster"),
            "hosts belong to no namespace",
            format!("ask wasmorch.v1.api._.{word}"),
        )),
        _ => Ok(namespace),
    }
}

/// Reads a body for its verb. An empty one is `{}`.
pub(super) fn read(verb: Verb, body: &[u8]) -> Result<Request, ApiError> {
    let body = if body.iter().all(u8::is_ascii_whitespace) {
        b"{}"
    } else {
        body
    };
    Ok(match verb {
        Verb::Deploy | Verb::Plan => {
            let request =
                manifest::read_deploy(body).map_err(|problems| refused(verb, problems))?;
            Request::Deploy(Box::new(request))
        }
        Verb::List | Verb::Hosts => Request::List(json(verb, body)?),
        Verb::Status | Verb::History => Request::Workload(json(verb, body)?),
        Verb::Scale | Verb::Stop | Verb::Start | Verb::Restart | Verb::Rm => {
            let request: ChangeRequest = json(verb, body)?;
            only_its_own(verb, &request)?;
            Request::Change(request)
        }
        Verb::Rollback | Verb::Rollout => Request::Rollout(json(verb, body)?),
        Verb::Why => Request::Why(json(verb, body)?),
        Verb::Quota => Request::Quota(json(verb, body)?),
        Verb::Cordon | Verb::Uncordon | Verb::Drain | Verb::HostRm | Verb::Rebalance => {
            Request::Host(json(verb, body)?)
        }
        Verb::Recover => Request::Recover(json(verb, body)?),
        Verb::Version => {
            json::<Empty>(verb, body)?;
            Request::Nothing
        }
    })
}

fn json<T: DeserializeOwned>(verb: Verb, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let place = |number: usize| u32::try_from(number).ok().filter(|number| *number > 0);
        let (line, column) = (place(error.line()), place(error.column()));
        // The place stands in its own fields.
        let what = error.to_string();
        let what = what
            .rsplit_once(" at line ")
            .map_or(what.as_str(), |(what, _)| what)
            .to_owned();
        refused(
            verb,
            vec![Problem {
                at: String::new(),
                line,
                column,
                what,
            }],
        )
    })
}

/// The verbs share a request; what belongs to another is a mistake here.
fn only_its_own(verb: Verb, request: &ChangeRequest) -> Result<(), ApiError> {
    let foreign = [
        ("desired", request.desired.is_some(), Verb::Scale),
        ("args", request.args.is_some(), Verb::Start),
        ("data", request.data, Verb::Rm),
    ];
    let problems: Vec<Problem> = foreign
        .into_iter()
        .filter(|(_, given, owner)| *given && *owner != verb)
        .map(|(at, _, owner)| Problem {
            at: at.to_owned(),
            line: None,
            column: None,
            what: format!("belongs to {}, not to {}", owner.as_str(), verb.as_str()),
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(refused(verb, problems))
    }
}

pub(super) fn refused(verb: Verb, problems: Vec<Problem>) -> ApiError {
    ApiError::invalid(
        format!("the {} request is refused", verb.as_str()),
        problems,
    )
}

/// What came from outside, short and on one line.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    format!("`{short}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(subject: &str) -> ApiError {
        target(subject).namespace.unwrap_err()
    }

    #[test]
    fn every_subject_gets_a_target_or_a_refusal() {
        let list = target("wasmorch.v1.api.shop.list");
        assert_eq!(list.verb, Some(Verb::List));
        assert_eq!(list.namespace.unwrap().unwrap().as_str(), "shop");
        assert_eq!(target("wasmorch.v1.api._.list").namespace.unwrap(), None);
        assert_eq!(
            refusal("wasmorch.v1.api.shop.explode").code,
            ErrorCode::NotFound
        );
        assert_eq!(refusal("wasmorch.v1.api._.deploy").code, ErrorCode::Invalid);
        assert!(
            refusal("wasmorch.v1.api.shop.hosts")
                .fix
                .contains("api._.hosts")
        );
        assert_eq!(
            refusal("wasmorch.v1.api.Shop.list").code,
            ErrorCode::Invalid
        );
        assert_eq!(
            refusal("wasmorch.v1.api.a.b.c.list").code,
            ErrorCode::Invalid
        );
    }

    #[test]
    fn nothing_is_an_empty_request() {
        assert!(matches!(read(Verb::List, b""), Ok(Request::List(_))));
        assert!(matches!(read(Verb::Version, b" \n"), Ok(Request::Nothing)));
    }

    #[test]
    fn mistakes_have_their_place() {
        let error = read(Verb::Scale, b"{\"workload\":\"web\",\n \"desire\":3}").unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(
            error.problems[0].what.contains("unknown field `desire`"),
            "{error}"
        );
        assert_eq!(error.problems[0].line, Some(2));
        let error = read(Verb::Status, b"{").unwrap_err();
        assert!(error.problems[0].what.contains("EOF"), "{error}");
        let error = read(Verb::Status, b"{\"workload\":\"No\"}").unwrap_err();
        assert!(error.problems[0].what.contains("DNS label"), "{error}");
    }

    #[test]
    fn what_belongs_to_another_verb_is_refused() {
        let body = b"{\"workload\":\"web\",\"desired\":3,\"data\":true}";
        let error = read(Verb::Stop, body).unwrap_err();
        let places: Vec<&str> = error
            .problems
            .iter()
            .map(|problem| problem.at.as_str())
            .collect();
        assert_eq!(places, ["desired", "data"]);
    }
}
