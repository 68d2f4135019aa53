//! What upstream refused us a short while ago, so that it is not asked again and again. Does no I/O.

use std::time::Duration;

use crate::{fading::Fading, failure::Failure, reference::RepositoryName};

/// So long is a refusal remembered: asking again would cost budget and lock accounts.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A missing login closes a repository, a denial one path of it.
pub(super) struct Refusals {
    repositories: Fading<RepositoryName, ()>,
    paths: Fading<(RepositoryName, String), ()>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { repositories: Fading::new(REMEMBERED), paths: Fading::new(REMEMBERED) }
    }
}

impl Refusals {
    /// What upstream said of `path` (below `/v2/<repository>/`), if it would say so again.
    pub(super) fn check(&self, repository: &RepositoryName, path: &str) -> Result<(), Failure> {
        if self.repositories.get(repository).is_some() {
            return Err(Failure::Refused);
        }
        match self.paths.get(&(repository.clone(), path.to_owned())) {
            Some(()) => Err(Failure::Denied),
            None => Ok(()),
        }
    }

    /// Keeps `failure` if it is a refusal.
    pub(super) fn remember(&self, repository: &RepositoryName, path: &str, failure: Failure) {
        // The first of those that were under way together says when it ends.
        if self.check(repository, path).is_err() {
            return;
        }
        match failure {
            Failure::Refused => self.repositories.put(repository.clone(), ()),
            Failure::Denied => self.paths.put((repository.clone(), path.to_owned()), ()),
            _ => {}
        }
    }

    /// Logins have changed: refusals may not hold any more.
    pub(super) fn forget(&self) {
        self.repositories.clear();
        self.paths.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_closes_one_path_and_a_missing_login_all_of_them() {
        let refusals = Refusals::default();
        let app: RepositoryName = "library/app".parse().expect("a name");
        let other: RepositoryName = "library/other".parse().expect("a name");
        refusals.remember(&app, "manifests/a", Failure::NotFound);
        refusals.remember(&app, "manifests/b", Failure::Denied);
        assert_eq!(refusals.check(&app, "manifests/a"), Ok(()));
        assert_eq!(refusals.check(&app, "manifests/b"), Err(Failure::Denied));
        assert_eq!(refusals.check(&other, "manifests/b"), Ok(()));
        refusals.remember(&app, "manifests/c", Failure::Refused);
        assert_eq!(refusals.check(&app, "manifests/a"), Err(Failure::Refused));
        assert_eq!(refusals.check(&other, "manifests/a"), Ok(()));
        refusals.forget();
        assert_eq!(refusals.check(&app, "manifests/b"), Ok(()));
    }
}
