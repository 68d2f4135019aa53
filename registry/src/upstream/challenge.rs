//! `WWW-Authenticate` as registries use it (RFC 7235, distribution's token spec). Pure.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// How upstream wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token from this realm.
    Bearer {
        /// URL of the token service.
        realm: reqwest::Url,
        /// The audience, handed through.
        service: Option<String>,
        /// What the token must cover, if upstream says so.
        scope: Option<String>,
    },
    /// User and password.
    Basic,
}

impl Challenge {
    /// Whether a right to ask comes from the same place, for whatever scope.
    pub fn is_of_same_service(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Basic, Self::Basic) => true,
            (Self::Bearer { realm, service, .. }, Self::Bearer { realm: others, service: theirs, .. }) => {
                realm == others && service == theirs
            }
            _ => false,
        }
    }
}

/// The best challenge of a 401 answer: Bearer before Basic. Nonsense gives `None`.
pub fn parse(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let found: Vec<Challenge> = texts.flat_map(parse_one).collect();
    let bearer = found.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(found.first()).cloned()
}

fn parse_one(text: &str) -> Vec<Challenge> {
    let Ok(challenges) = http_auth::parse_challenges(text) else { return Vec::new() };
    challenges.iter().filter_map(understand).collect()
}

fn understand(challenge: &http_auth::ChallengeRef<'_>) -> Option<Challenge> {
    if challenge.scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !challenge.scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameter = |name: &str| {
        let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
    };
    let realm = parameter("realm")?.parse::<reqwest::Url>().ok()?;
    let speaks_http = matches!(realm.scheme(), "http" | "https") && realm.host().is_some();
    speaks_http.then(|| Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(texts: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        parse(&headers)
    }

    #[test]
    fn table() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.docker.io/token".parse().unwrap(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/nginx:pull".into()),
        };
        assert_eq!(challenge(&[hub]), Some(bearer.clone()));
        assert_eq!(challenge(&["Basic realm=\"x\"", hub]), Some(bearer));
        assert_eq!(challenge(&["basic realm=\"x\""]), Some(Challenge::Basic));
        for nonsense in [
            "",
            "Bearer",
            "Bearer realm=\"file:///etc/passwd\"",
            "Bearer realm=\"nonsense\"",
            "Digest realm=\"x\"",
            "\"\"\"",
        ] {
            assert_eq!(challenge(&[nonsense]), None, "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[ -~]{0,80}") {
            challenge(&[&text]);
        }
    }
}
