//! Requests: from a subject and a body to what is asked, every mistake reported.
//!
//! Owns the grammar of the API's requests but for specs, whose grammar is `api`'s.

use serde::de::DeserializeOwned;
use wasmorch_api::manifest::{self, grammar};
use wasmorch_api::messages::{
    ChangeRequest, DeployRequest, Empty, HistoryRequest, HostRequest, ListRequest, QuotaRequest,
    RecoverRequest, RolloutRequest, WhyRequest, WorkloadRequest,
};
use wasmorch_api::{ApiError, ErrorCode, Name, Problem, RequestId, subjects};

use super::verb::{Scope, Verb};

/// A request as it was read.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// `deploy`, `plan`.
    Deploy(Box<DeployRequest>),
    /// `list`, `hosts`.
    List(ListRequest),
    /// `status`.
    Status(WorkloadRequest),
    /// `history`.
    History(HistoryRequest),
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
            Self::List(_) | Self::Status(_) | Self::History(_) | Self::Why(_) | Self::Nothing => {
                (None, None)
            }
        }
    }

    /// What is written freely, by its field: stored, told again, or looked up.
    fn texts(&self) -> Vec<(&'static str, Option<&str>)> {
        let mut texts = match self {
            Self::List(request) => vec![("cursor", request.cursor.as_deref())],
            Self::History(request) => vec![("cursor", request.cursor.as_deref())],
            Self::Why(request) => vec![
                ("host", request.host.as_deref()),
                ("replica", request.replica.as_deref()),
            ],
            Self::Host(request) => vec![
                ("host", request.host.as_deref()),
                ("cursor", request.cursor.as_deref()),
            ],
            _ => Vec::new(),
        };
        texts.push(("by", self.caller().1));
        texts
    }

    /// What is wrong with the request whatever it is for.
    fn problems(&self) -> Vec<Problem> {
        let texts = self.texts().into_iter();
        let texts = texts.filter_map(|(at, text)| Some((at, grammar::free_text(text?).err()?)));
        let limit = match self {
            Self::List(request) => request.limit,
            Self::History(request) => request.limit,
            _ => None,
        };
        let none = (limit == Some(0)).then(|| {
            let what = "must be at least 1: a page without items leads nowhere";
            ("limit", what.to_owned())
        });
        let args = match self {
            Self::Change(request) => request.args.as_deref(),
            _ => None,
        };
        let args = args.and_then(|args| Some(("args", grammar::arguments(args).err()?)));
        texts
            .chain(none)
            .chain(args)
            .map(|(at, what)| problem(at, what))
            .collect()
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
    // Where fields have an order, an array would be taken for an object.
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        let what = "a request is a JSON object: {\"field\": value, ..}".to_owned();
        return Err(refused(verb, vec![problem("", what)]));
    }
    let request = read_for(verb, body)?;
    let problems = request.problems();
    if problems.is_empty() {
        Ok(request)
    } else {
        Err(refused(verb, problems))
    }
}

fn problem(at: &str, what: String) -> Problem {
    Problem {
        at: at.to_owned(),
        line: None,
        column: None,
        what,
    }
}

fn read_for(verb: Verb, body: &[u8]) -> Result<Request, ApiError> {
    Ok(match verb {
        Verb::Deploy | Verb::Plan => {
            let request =
                manifest::read_deploy(body).map_err(|problems| refused(verb, problems))?;
            Request::Deploy(Box::new(request))
        }
        Verb::List | Verb::Hosts => Request::List(json(verb, body)?),
        Verb::Status => Request::Status(json(verb, body)?),
        Verb::History => Request::History(json(verb, body)?),
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
        .map(|(at, _, owner)| {
            let what = format!("belongs to {}, not to {}", owner.as_str(), verb.as_str());
            problem(at, what)
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
    fn only_an_object_is_a_request() {
        for verb in Verb::ALL {
            for body in ["[\"web\",2]", " [] ", "null", "\"web\"", "2"] {
                let error = read(verb, body.as_bytes()).unwrap_err();
                assert_eq!(error.code, ErrorCode::Invalid, "{verb:?} {body}");
                assert!(error.problems[0].what.contains("object"), "{error}");
            }
        }
    }

    /// The fields that are refused of a request.
    fn refused_at(verb: Verb, body: serde_json::Value) -> Vec<String> {
        let read = read(verb, body.to_string().as_bytes());
        let problems = read.err().map(|error| error.problems);
        let problems = problems.into_iter().flatten();
        problems.map(|problem| problem.at).collect()
    }

    #[test]
    fn what_is_stored_and_told_again_is_short_and_on_one_line() {
        use serde_json::json;
        let mut asked = 0;
        for verb in Verb::ALL.into_iter().filter(|verb| verb.writes()) {
            for (by, refused) in [
                ("x".repeat(201), true),
                ("a\nb".into(), true),
                ("é".repeat(100), false),
            ] {
                let body = match verb {
                    Verb::Deploy => json!({"workloads": [], "by": by}),
                    Verb::Quota | Verb::Recover => json!({"by": by}),
                    Verb::Cordon
                    | Verb::Uncordon
                    | Verb::Drain
                    | Verb::HostRm
                    | Verb::Rebalance => json!({"host": "h1", "by": by}),
                    _ => json!({"workload": "web", "by": by}),
                };
                let at = refused_at(verb, body);
                assert_eq!(at.contains(&"by".to_owned()), refused, "{verb:?} {at:?}");
                asked += 1;
            }
        }
        assert!(asked > 30);
        let long = "h".repeat(1 << 20);
        assert_eq!(refused_at(Verb::Cordon, json!({"host": long})), ["host"]);
        assert_eq!(
            refused_at(Verb::Why, json!({"replica": "web/1-1\r"})),
            ["replica"]
        );
        assert_eq!(refused_at(Verb::List, json!({"cursor": long})), ["cursor"]);
        let args = vec!["x"; 1_001];
        let start = json!({"workload": "sum", "args": args});
        assert_eq!(refused_at(Verb::Start, start), ["args"]);
        assert_eq!(
            refused_at(Verb::Start, json!({"workload": "sum", "args": [long]})),
            ["args"]
        );
        let few = json!({"workload": "sum", "args": ["a\nb"]});
        assert!(refused_at(Verb::Start, few).is_empty());
    }

    #[test]
    fn lists_have_limits_of_at_least_one() {
        use serde_json::json;
        for verb in [Verb::List, Verb::Hosts, Verb::History] {
            let mut body = json!({"limit": 0});
            if verb == Verb::History {
                body["workload"] = json!("web");
            }
            assert_eq!(refused_at(verb, body.clone()), ["limit"], "{verb:?}");
            body["limit"] = json!(1);
            body["cursor"] = json!("2");
            assert!(refused_at(verb, body).is_empty(), "{verb:?}");
        }
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
