//! What of a file is kept besides its text.

use super::*;
use std::fs::File;
use std::time::{Duration, SystemTime};

#[test]
fn mode_and_attributes_are_kept_and_the_time_is_given_back() {
    let node = Node::new(&[("docker.io/hosts.toml", "# a\n")]);
    let path = node.certs().join("docker.io/hosts.toml");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(&path, "user.note", b"ours", rustix::fs::XattrFlags::empty()).unwrap();
    let written = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
    for (wanted, is_given_back) in [(vec![wanted("docker.io")], false), (vec![], true)] {
        node.converge(&wanted);
        let mut note = [0; 8];
        let length = rustix::fs::getxattr(&path, "user.note", &mut note).unwrap();
        assert_eq!(&note[..length], b"ours");
        let found = path.metadata().unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
        assert_eq!(found.modified().unwrap() == written, is_given_back);
    }
}

#[test]
fn a_time_that_cannot_be_recorded_stops_nobody() {
    let node = Node::new(&[("docker.io/hosts.toml", "# a\n")]);
    let path = node.certs().join("docker.io/hosts.toml");
    let before_time = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    File::options().write(true).open(&path).unwrap().set_modified(before_time).unwrap();
    let outcome = node.converge(&[wanted("docker.io"), wanted("ghcr.io")]);
    assert!(outcome.placed.values().all(Result::is_ok), "{outcome:?}");
    node.converge(&[]);
    assert_eq!(std::fs::read(&path).unwrap(), b"# a\n");
}
