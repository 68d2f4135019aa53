//! Request lines: whatever is let through names safe paths, and finds the same route when it is written out again.
#![no_main]

use breakwater_registry::route::{self, List, Route};
use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(uri) = text.parse::<Uri>() else { return };
    let registry = "docker.io".parse().expect("a registry");
    let Ok(route) = route::parse(&Method::GET, &uri, &registry) else { return };
    let path = match &route {
        Route::Base => "/v2/".to_owned(),
        Route::Manifest { repository, reference } => format!("/v2/{repository}/manifests/{reference}"),
        Route::Blob { repository, digest } => format!("/v2/{repository}/blobs/{digest}"),
        Route::List { repository, list: List::Tags { .. } } => format!("/v2/{repository}/tags/list"),
        Route::List { repository, list: List::Referrers { digest, .. } } => {
            format!("/v2/{repository}/referrers/{digest}")
        }
    };
    assert!(path.split('/').skip(1).all(|part| part != "." && part != ".."), "{path}");
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\' && byte != b'%'), "{path}");
    let again = route::parse(&Method::GET, &path.parse().expect("a path"), &registry).expect("the same route");
    assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&route));
    if !matches!(route, Route::List { .. }) {
        assert_eq!(again, route);
    }
});
